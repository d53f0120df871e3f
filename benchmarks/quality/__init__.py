"""What SpecPrefill does to answers: tasks, methods, scores and tables (`python -m benchmarks.quality`)."""
