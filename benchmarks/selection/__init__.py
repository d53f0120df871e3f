"""The selection bench: which prompt tokens a rule keeps, and what the answers of a real chat model lose by it."""
