"""A random mix of requests against a pool that is too small, and what it left behind."""
