"""The draft model: its runner and pools, the queries recorded from it, and the forwards that draft a group of prompts."""
