"""From votes to kept tokens: importance of tokens, scores of chunks, budget, choice (README, What is computed, 3 to 5)."""
