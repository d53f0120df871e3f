"""Importance of prompt tokens in plain torch (README, What is computed, 2 to 4): any device, the kernels' reference."""

from collections.abc import Iterable

import torch
from torch.nn.functional import avg_pool1d


def layer_votes(
    queries: torch.Tensor,
    keys: torch.Tensor,
    *,
    scaling: float,
    logit_cap: float,
    pool_kernel: int,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pooled attention of one layer onto the prompt, max over its heads.

    Parameters
    ----------
    queries : [votes, heads, head_dim]
        After RoPE.
    keys : [prompt_tokens, kv_heads, head_dim]
        After RoPE; query head h reads key head h // (heads // kv_heads).
    scaling : float
        The layer's softmax scale.
    logit_cap : float
        The layer's cap (cap * tanh(x / cap)); 0 for none.
    pool_kernel : int
        Odd width of the average pooling over positions, zero padding counted.
    sinks : [heads], optional
        One more logit per head in the normaliser; its own weight is dropped.

    Returns
    -------
    float32 [votes, prompt_tokens]

    Notes
    -----
    One key head at a time, so that scratch is votes * (heads / kv_heads) * prompt_tokens floats. A head that parks its mass
    on its sink has little left for the prompt: without the sink in the normaliser it would win the max over heads.
    """
    votes, heads, dim = queries.shape
    n, kv_heads, _ = keys.shape
    grouped = queries.float().view(votes, kv_heads, heads // kv_heads, dim)
    sink_of = None if sinks is None else sinks.float().view(kv_heads, -1, 1)
    best = None
    for head in range(kv_heads):
        logits = torch.matmul(grouped[:, head], keys[:, head].float().T) * scaling
        if logit_cap > 0:
            logits = logit_cap * torch.tanh(logits / logit_cap)
        if sink_of is not None:
            logits = torch.cat([logits, sink_of[head].expand(votes, -1, 1)], dim=-1)
        attention = logits.softmax(dim=-1)[..., :n]
        pooled = avg_pool1d(attention, pool_kernel, stride=1, padding=pool_kernel // 2).amax(dim=1)
        best = pooled if best is None else torch.maximum(best, pooled)
    assert best is not None
    return best


def max_votes(layers: Iterable[torch.Tensor]) -> torch.Tensor:
    """Max over layers of `layer_votes`: float32 [votes, prompt_tokens]. Consumes the layers one at a time."""
    best = None
    for votes in layers:
        best = votes if best is None else torch.maximum(best, votes)
    if best is None:
        raise ValueError("the draft has no attention layer whose queries vote")
    return best


def chunk_scores(votes: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Mean over votes, then mean importance per chunk: float32 [chunks]; the last chunk may be shorter."""
    importance = votes.mean(dim=0)
    whole = len(importance) // chunk_size * chunk_size
    scores = importance[:whole].view(-1, chunk_size).mean(dim=1)
    if whole == len(importance):
        return scores
    return torch.cat([scores, importance[whole:].mean(dim=0, keepdim=True)])
