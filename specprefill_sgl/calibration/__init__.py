"""Which of a draft's heads find what a question asks for: read prompts with known answers, rank, write a file."""
