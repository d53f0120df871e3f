"""The demo: a real server, a real document, dense against sparse (`python -m benchmarks.demo`)."""
