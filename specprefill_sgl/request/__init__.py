"""What is known of a request: what it asks for, whether it can be sparse, what was decided, its coded ids, earlier turns."""
