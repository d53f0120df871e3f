"""Importance of prompt tokens from the draft's queries and keys."""
