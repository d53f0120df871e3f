"""From votes to kept tokens: importance of tokens, scores of chunks, budget, choice (docs/selection.md, 3 to 5)."""
