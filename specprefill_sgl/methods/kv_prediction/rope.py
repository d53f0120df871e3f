"""Rotary embedding on and off keys: predictors work on keys without it, pools hold keys with it."""

from typing import Any

import torch

_KNOWN = {
    "RotaryEmbedding",
    "Llama3RotaryEmbedding",
    "YaRNScalingRotaryEmbedding",
    "DynamicNTKScalingRotaryEmbedding",
    "DynamicNTKAlphaRotaryEmbedding",
}


def check(rotary: Any) -> None:
    """Refuse what is not a table of one angle a position.

    Raises
    ------
    ValueError
        Names SGLang's class.
    """
    if type(rotary).__name__ not in _KNOWN:
        raise ValueError(f"its positions are embedded by {type(rotary).__name__}, which keys cannot be freed of here")


def rotate(keys: torch.Tensor, positions: torch.Tensor, rotary: Any) -> torch.Tensor:
    """As a layer's own rotary embedding: [tokens, heads, head_dim] at int64 [tokens], in float32."""
    cos, sin = _angles(positions, rotary)
    return _turned(keys, cos, sin, rotary)


def derotate(keys: torch.Tensor, positions: torch.Tensor, rotary: Any) -> torch.Tensor:
    """The inverse of `rotate`, also where the table scales (YaRN) or is rounded."""
    cos, sin = _angles(positions, rotary)
    length = cos.square() + sin.square()
    return _turned(keys, cos / length, -sin / length, rotary)


def _angles(positions: torch.Tensor, rotary: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, float32 [tokens, 1, rotary_dim / 2]."""
    cos, sin = rotary.cos_sin_cache[positions].float().unsqueeze(1).chunk(2, dim=-1)
    return cos, sin


def _turned(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotary: Any) -> torch.Tensor:
    keys = keys.float()
    turning, still = keys[..., : rotary.rotary_dim], keys[..., rotary.rotary_dim :]
    neox = rotary.is_neox_style  # halves of a head are pairs; else neighbours are
    one, other = turning.chunk(2, dim=-1) if neox else (turning[..., ::2], turning[..., 1::2])
    pairs = (one * cos - other * sin, other * cos + one * sin)
    turned = torch.cat(pairs, dim=-1) if neox else torch.stack(pairs, dim=-1).flatten(-2)
    return torch.cat([turned, still], dim=-1)
