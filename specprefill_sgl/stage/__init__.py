"""The speculation stage: prompts in, kept positions or a reason out."""
