"""Attention of one request's newest tokens onto what the cache holds of it, in plain torch.

Shapes throughout: queries [heads, n, dim], keys [kv_heads, N, dim], values [kv_heads, N, v_dim] -> [heads, n, v_dim]; the
queries are those of the last n of the N positions, and query head h reads key head h // (heads // kv_heads).
"""

from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention


class Form(NamedTuple):
    """What a layer's attention is made of.

    Attributes
    ----------
    scaling : float
        Of the logits.
    cap : float
        cap * tanh(logits / cap); 0 for none.
    window : int or None
        A query sees itself and this many positions before it; all of them if None.
    sinks : Tensor [heads] or None
        One more logit per head in the normaliser; its own weight goes nowhere.
    """

    scaling: float
    cap: float = 0.0
    window: int | None = None
    sinks: torch.Tensor | None = None


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, form: Form, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """Causal attention; what precedes the first query's window must have been left out.

    Of keys that are visible so, `seen`, bool [n, N], leaves some out. Fused where torch has a fused kernel for it, which is
    where nothing but causality shapes the attention.
    """
    if seen is not None:
        return _attend_in_any_form(queries, keys, values, form, seen)
    plain = form.cap <= 0 and form.sinks is None
    if plain and queries.shape[1] == 1:
        return _attend_last(queries, keys, values, form.scaling)
    if plain and form.window is None and queries.shape[-1] == values.shape[-1]:
        return _attend_new(queries, keys, values, form.scaling)
    return _attend_in_any_form(queries, keys, values, form)


def _attend_last(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    """One token onto all keys: the query heads of one key head are rows of one product, so that no key is copied."""
    grouped = query.reshape(len(keys), -1, query.shape[-1])
    return scaled_dot_product_attention(grouped[None], keys[None], values[None], scale=scaling)[0].view(len(query), 1, -1)


def _attend_new(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    """Onto the prefix, all of which the queries see, and causally onto themselves; v_dim must be dim.

    The two softmaxes are made one by their normalisers, in float32.
    """
    start = keys.shape[1] - queries.shape[1]
    group = len(queries) // len(keys)
    own_keys, own_values = (one[:, start:].repeat_interleave(group, dim=0) for one in (keys, values))
    onto_own, own_lse = _fused_attention(queries, own_keys, own_values, scaling, causal=True)
    if start == 0:
        return onto_own
    rows = queries.reshape(len(keys), -1, queries.shape[-1])  # the heads of one key head as rows of one product
    onto_prefix, prefix_lse = _fused_attention(rows, keys[:, :start], values[:, :start], scaling, causal=False)
    weight = torch.sigmoid(prefix_lse.reshape(own_lse.shape) - own_lse)[..., None]
    return torch.lerp(onto_own.float(), onto_prefix.reshape(onto_own.shape).float(), weight).to(queries.dtype)


def _fused_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `scaled_dot_product_attention` runs on a CPU, with the logarithm of its normalisers, float32 [heads, n]."""
    run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = run(queries[None], keys[None], values[None], 0.0, causal, scale=scaling)
    return out[0], lse[0]


def _attend_in_any_form(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, form: Form, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """Any form, in float32, with heads * n * N floats of scratch."""
    heads, length, dim = queries.shape
    grouped = queries.float().reshape(len(keys), -1, dim)
    logits = (grouped @ keys.float().mT * form.scaling).view(heads, length, -1)
    if form.cap > 0:
        logits = form.cap * torch.tanh(logits / form.cap)
    visible = _visible(length, keys.shape[1], form.window, queries.device)
    logits = logits.masked_fill(~(visible if seen is None else visible & seen), float("-inf"))
    if form.sinks is not None:
        logits = torch.cat([logits, form.sinks.float()[:, None, None].expand(-1, length, 1)], dim=-1)
    weights = logits.softmax(dim=-1)[..., : keys.shape[1]]
    out = weights.reshape(len(keys), -1, keys.shape[1]) @ values.float()
    return out.view(heads, length, -1).to(queries.dtype)


def _visible(length: int, total: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which of `total` keys each of the last `length` positions sees, bool [length, total]."""
    key_at = torch.arange(total, device=device)
    at = key_at[total - length :, None]
    visible = key_at <= at
    return visible if window is None else visible & (key_at >= at - window)
