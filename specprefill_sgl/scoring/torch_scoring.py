"""Pooled attention on prompt tokens in plain torch (docs/selection.md, 2 and 3): any device, the kernels' reference."""

from collections.abc import Iterable, Sequence

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
    visible: torch.Tensor | None = None,
    counted: tuple[int, int] | None = None,
    heads: Sequence[int] | None = None,
) -> torch.Tensor:
    """Pooled attention of one layer onto the prompt: the maximum over its heads, or the sum over chosen ones.

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
    visible : int [votes], optional
        Leading prompt tokens that each query sees; all without it.
    counted : (begin, end), optional
        Attention on other tokens is dropped after the softmax, before pooling.
    heads : sequence of int, optional
        Different query heads whose sum is wanted; without it, the maximum over all.

    Returns
    -------
    float32 [votes, prompt_tokens]

    Notes
    -----
    One key head at a time, so that scratch is votes * (heads / kv_heads) * prompt_tokens floats. A head that parks its mass
    on its sink has little left for the prompt: without the sink in the normaliser it would win the max over heads.
    """
    n, kv_heads, _ = keys.shape
    group = queries.shape[1] // kv_heads
    position = torch.arange(n, device=keys.device)
    hidden = None if visible is None else position >= visible[:, None]
    dropped = None if counted is None else (position < counted[0]) | (position >= counted[1])
    combined = None
    for kv_head in range(kv_heads):
        members = [h for h in range(kv_head * group, (kv_head + 1) * group) if heads is None or h in heads]
        if not members:
            continue
        logits = torch.matmul(queries[:, members].float(), keys[:, kv_head].float().T) * scaling
        if logit_cap > 0:
            logits = logit_cap * torch.tanh(logits / logit_cap)
        if hidden is not None:
            logits = logits.masked_fill(hidden[:, None], float("-inf"))
        if sinks is not None:
            logits = torch.cat([logits, sinks[members].float()[:, None].expand(len(logits), -1, 1)], dim=-1)
        attention = logits.softmax(dim=-1)[..., :n]
        if dropped is not None:
            attention = attention.masked_fill(dropped, 0.0)
        if heads is None:
            pooled = _pooled(attention, pool_kernel).amax(dim=1)
            combined = pooled if combined is None else torch.maximum(combined, pooled)
        else:  # pooling is linear: once, of the sum
            summed = attention.sum(dim=1)
            combined = summed if combined is None else combined + summed
    if combined is None:
        return queries.new_zeros(len(queries), n, dtype=torch.float32)
    return combined if heads is None else _pooled(combined, pool_kernel)


def _pooled(attention: torch.Tensor, pool_kernel: int) -> torch.Tensor:
    return avg_pool1d(attention, pool_kernel, stride=1, padding=pool_kernel // 2)


def max_votes(layers: Iterable[torch.Tensor]) -> torch.Tensor:
    """Max over layers of `layer_votes`: float32 [votes, prompt_tokens]. Consumes the layers one at a time."""
    best = None
    for votes in layers:
        best = votes if best is None else torch.maximum(best, votes)
    if best is None:
        raise ValueError("the draft has no attention layer whose queries vote")
    return best
