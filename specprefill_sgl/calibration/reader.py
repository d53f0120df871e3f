"""Reads prompts with a Hugging Face model and keeps what votes are made of: queries of its last tokens, keys of all."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from specprefill_sgl.scoring.torch_scoring import layer_votes

_NAME = "specprefill_reader"
_seen: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] | None = None  # of the forward in progress, by layer


class LayerReading(NamedTuple):
    """What one attention layer saw in a forward; layers are in the order of the forward, linear ones are not among them.

    Attributes
    ----------
    queries : [rows, heads, head_dim]
        After RoPE, of the last tokens.
    keys : [tokens, kv_heads, head_dim]
        After RoPE, of all tokens so far.
    scaling, logit_cap : float
    sinks : [heads] or None
    window : int or None
        Tokens its queries look back on; None: all.
    hidden : int
        Which of the model's layers it is in, linear ones counted.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    scaling: float
    logit_cap: float
    sinks: torch.Tensor | None
    window: int | None
    hidden: int

    @property
    def visible(self) -> torch.Tensor:
        """Leading tokens that each query sees, int64 [rows]: the queries are of the last tokens."""
        n, rows = len(self.keys), len(self.queries)
        return torch.arange(n - rows + 1, n + 1, device=self.keys.device)

    def votes(self, heads: Sequence[int], pool_kernel: int = 1, counted: tuple[int, int] | None = None) -> torch.Tensor:
        """`layer_votes` of these heads, summed: float32 [rows, tokens]."""
        return layer_votes(
            self.queries,
            self.keys,
            scaling=self.scaling,
            logit_cap=self.logit_cap,
            pool_kernel=pool_kernel,
            sinks=self.sinks,
            visible=self.visible,
            counted=counted,
            heads=heads,
        )


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **how):
    """Transformers' own attention, in the order query [1, heads, q, d], key and value [1, kv_heads, k, d]."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if _seen is not None:
        _seen.append((query[0], key[0], {**how, "scaling": scaling, "hidden": module.layer_idx}))
    if how.get("softcap") is None and how.get("s_aux") is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling, **how)
    return _eager(query, key, value, attention_mask, scaling, how.get("softcap"), how.get("s_aux"))


def _eager(query, key, value, mask, scaling, softcap, sinks):
    group = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(group, dim=1).transpose(-1, -2) * scaling
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is None:  # plainly causal
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril(key.shape[2] - query.shape[2])
    logits = logits.masked_fill(~mask[..., : key.shape[2]], float("-inf"))
    if sinks is not None:
        logits = torch.cat([logits, sinks.reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1).to(logits.dtype)], dim=-1)
    weights = logits.float().softmax(dim=-1)[..., : key.shape[2]].to(value.dtype)
    return (weights @ value.repeat_interleave(group, dim=1)).transpose(1, 2).contiguous(), weights


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


class Forward(NamedTuple):
    """A forward of some tokens.

    Attributes
    ----------
    logits : float32 [rows, vocabulary]
        Of the last tokens.
    layers : list of LayerReading
    cache : transformers.Cache
    """

    logits: torch.Tensor
    layers: list[LayerReading]
    cache: Any


@torch.no_grad()
def read(model: Any, ids: Sequence[int], rows: int, cache: Any = None, positions: Sequence[int] | None = None) -> Forward:
    """One forward of tokens after what a cache holds, keeping logits and queries of the last `rows`.

    Parameters
    ----------
    model : PreTrainedModel
        For causal language modelling.
    ids : sequence of int
    rows : int
    cache : transformers.Cache, optional
        Of an earlier forward; it grows.
    positions : sequence of int, optional
        Rotary positions; without them, those that follow the cache.
    """
    global _seen
    before = 0 if cache is None else cache.get_seq_length()
    positions = range(before, before + len(ids)) if positions is None else positions
    model.set_attn_implementation(_NAME)
    _seen = []
    try:
        out = model(
            input_ids=torch.tensor([list(ids)], device=model.device),
            position_ids=torch.tensor([list(positions)], device=model.device),
            attention_mask=torch.ones(1, before + len(ids), dtype=torch.long, device=model.device),  # no padding
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=rows,
        )
        layers = [_layer(query, key, rows, how) for query, key, how in _seen]
    finally:
        _seen = None
    return Forward(out.logits[0].float(), layers, out.past_key_values)


def _layer(query: torch.Tensor, key: torch.Tensor, rows: int, how: dict[str, Any]) -> LayerReading:
    return LayerReading(
        queries=query[:, -rows:].transpose(0, 1).clone(),  # not a view that holds all
        keys=key.transpose(0, 1),
        scaling=how["scaling"],
        logit_cap=how.get("softcap") or 0.0,
        sinks=None if (sinks := how.get("s_aux")) is None else sinks.detach(),
        window=how.get("sliding_window"),
        hidden=how["hidden"],
    )
