"""Causal depthwise convolution of linear attention layers in torch, for SGLang's Triton kernels of the same names.

A layer convolves the last `width` tokens of each channel. The `width - 1` tokens before a sequence's next one are its state,
[slots, channels, width - 1]; a slot of `pad_slot_id` marks a row that is padding. Sums are float32. What only speculative
decoding passes (windows of each draft token, trees) is not taken: it fails with a TypeError.
"""

import torch
from torch.nn.functional import conv1d, silu

from specprefill_sgl.platforms.replacement import replace

_PAD_SLOT = -1  # SGLang's PAD_SLOT_ID


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_states: torch.Tensor | None,
    query_start_loc: torch.Tensor,
    seq_lens_cpu: list[int] | None = None,
    cache_indices: torch.Tensor | None = None,
    has_initial_state: torch.Tensor | None = None,
    activation: str | bool | None = "silu",
    pad_slot_id: int = _PAD_SLOT,
    validate_data: bool = False,
    **_unused: object,
) -> torch.Tensor:
    """Convolve the new tokens of several sequences, and leave each sequence's state behind.

    Parameters
    ----------
    x : [channels, tokens]
        Sequences one after the other, in any strides.
    weight : [channels, width]
    bias : [channels], or None
    conv_states : [slots, channels, at least width - 1], or None
        Written in place.
    query_start_loc : [sequences + 1]
        Where sequences start in `x`; tokens after the last are padding.
    cache_indices : [sequences], or None
        Slot of each sequence; without, sequence i has slot i.
    has_initial_state : [sequences] bool, or None
        Whether the sequence's slot holds the tokens before it, rather than nothing to be read.

    Returns
    -------
    [channels, tokens], as `x`; zero where there is padding.
    """
    out = torch.zeros_like(x)
    past = weight.shape[1] - 1
    starts = query_start_loc.tolist()
    slots = list(range(len(starts) - 1)) if cache_indices is None else cache_indices.tolist()
    continued = [False] * len(slots) if has_initial_state is None else has_initial_state.tolist()
    for slot, goes_on, start, end in zip(slots, continued, starts, starts[1:], strict=False):
        if slot == pad_slot_id or start == end:
            continue
        before = x.new_zeros(len(x), past)
        if goes_on and conv_states is not None:
            before = conv_states[slot, :, :past].to(x.dtype)
        window = torch.cat([before, x[:, start:end]], dim=1)
        out[:, start:end] = _convolve(window[None], weight, bias, activation)[0]
        if conv_states is not None:
            conv_states[slot, :, :past] = window[:, -past:].to(conv_states.dtype)
    return out


def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | bool | None = None,
    cache_seqlens: None = None,
    conv_state_indices: torch.Tensor | None = None,
    pad_slot_id: int = _PAD_SLOT,
) -> torch.Tensor:
    """Convolve the next token of each request, [requests, channels], or the next few, [requests, channels, tokens].

    `conv_state` [slots, channels, at least width - 1] is shifted in place; `conv_state_indices` [requests] are the slots.
    Returns what `x` is; zero for padding.
    """
    if cache_seqlens is not None:
        raise NotImplementedError("The CPU platform's convolution keeps no circular state (cache_seqlens)")
    new = x[..., None] if x.dim() == 2 else x
    past = weight.shape[1] - 1
    slots = torch.arange(len(new)) if conv_state_indices is None else conv_state_indices.long()
    rows = slots != pad_slot_id
    slots = slots[rows]
    window = torch.cat([conv_state[slots, :, :past].to(x.dtype), new[rows]], dim=2)
    conv_state[slots, :, :past] = window[:, :, -past:].to(conv_state.dtype)
    out = torch.zeros_like(new)
    out[rows] = _convolve(window, weight, bias, activation)
    return out.view_as(x)


def _convolve(
    window: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | bool | None
) -> torch.Tensor:
    """[n, channels, width - 1 + tokens] -> [n, channels, tokens]."""
    bias = None if bias is None else bias.float()
    out = conv1d(window.float(), weight.float()[:, None], bias, groups=len(weight))
    return (silu(out) if activation in ("silu", "swish", True) else out).to(window.dtype)


def register() -> None:
    """Convolve with these in this process."""
    replace(
        "sglang.kernels.ops.mamba.causal_conv1d_triton",
        causal_conv1d_fn=causal_conv1d_fn,
        causal_conv1d_update=causal_conv1d_update,
    )
