"""The shipped pair: a small target and draft that retrieve, and the script that trained them (`python -m benchmarks.pair`)."""
