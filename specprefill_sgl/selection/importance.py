"""Votes to scores: importance of tokens over the votes, mean importance of chunks (docs/selection.md, 3 and 4)."""

import torch

from specprefill_sgl.selection.rule import Rule


def chunk_scores(votes: torch.Tensor, n_window: int, rule: Rule) -> torch.Tensor:
    """What the chunks are ranked by.

    Parameters
    ----------
    votes : float32 [votes, prompt_tokens]
        Pooled attention of each query; those of the window come first.
    n_window : int
        How many these are.
    rule : Rule

    Returns
    -------
    float32 [chunks]
        Mean importance of the chunk's tokens. Where window and lookahead choose in turn: 1 / (1 + the chunk's best place).
    """
    crowds = [votes]
    if rule.window_votes == "turns":
        crowds = [crowd for crowd in votes.split([n_window, len(votes) - n_window]) if len(crowd)]
    scores = [chunk_means(over_votes(crowd, rule), rule.chunk_size) for crowd in crowds]
    return scores[0] if len(scores) == 1 else _in_turn(scores)


def over_votes(votes: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Importance of tokens, float32 [prompt_tokens], of votes [votes, prompt_tokens]."""
    return votes.mean(dim=0) if rule.over_votes == "mean" else votes.amax(dim=0)


def chunk_means(importance: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Mean over each chunk's tokens, [..., chunks] of [..., prompt_tokens]; the last chunk may be shorter."""
    whole = importance.shape[-1] // chunk_size * chunk_size
    scores = importance[..., :whole].unflatten(-1, (-1, chunk_size)).mean(dim=-1)
    if whole == importance.shape[-1]:
        return scores
    return torch.cat([scores, importance[..., whole:].mean(dim=-1, keepdim=True)], dim=-1)


def _in_turn(rankings: list[torch.Tensor]) -> torch.Tensor:
    """One ranking of several: by the best place in any of them, earlier rankings first where places are equal."""
    best = torch.full_like(rankings[0], float("inf"))
    for number, scores in enumerate(rankings):
        order = scores.argsort(descending=True, stable=True)
        place = torch.empty_like(scores).scatter_(0, order, torch.arange(len(scores), device=scores.device, dtype=scores.dtype))
        place = torch.where(scores.isfinite(), place * len(rankings) + number, float("nan"))  # what is not stays unusable
        best = torch.minimum(best, place)
    return 1 / (1 + best)
