"""Mamba2's state space kernels on a CPU: SGLang's calls, answered by transformers' reference functions.

SGLang keeps one state per request, float32 [slots, heads, head_dim, state], and packs the sequences of a batch behind each
other. transformers computes one sequence, or one token of each of several.
"""

import importlib
from itertools import pairwise

import torch
from torch import Tensor
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan, mamba2_selective_state_update

from specprefill_sgl.platforms.replacement import replace
from specprefill_sgl.platforms.torch_convolution import causal_conv1d_fn, causal_conv1d_update


def chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    chunk_size: int,
    D: Tensor | None = None,  # noqa: N803
    *,
    out: Tensor,
    cu_seqlens: Tensor,
    state_dtype: torch.dtype,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_states: Tensor | None = None,
    track_seq_idx: Tensor | None = None,
    track_end_locs: Tensor | None = None,
    **_,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scan the sequences of a prefill; `mamba_chunk_scan_combined` as `MambaMixer2` calls it (never with a gate).

    Parameters
    ----------
    x, out : [1, tokens, heads, head_dim]
    dt : [1, tokens, heads]
    A, D, dt_bias : [heads]
    B, C : [1, tokens, groups, state]
    cu_seqlens : int [sequences + 1]
        Where sequences start, and where the last one ends.
    initial_states : [sequences, heads, head_dim, state], optional
        Zeros if there are none.
    track_end_locs : int [tracked], optional
        Tokens before which the state is asked for, inside or at the start of a sequence.

    Returns
    -------
    before : [1, chunks, heads, head_dim, state]
        The state before every `chunk_size`-th token of the batch.
    after : [sequences, heads, head_dim, state]
    tracked : [1, tracked, heads, head_dim, state] or None
    """
    tracked = [] if track_end_locs is None else track_end_locs.tolist()
    chunks = range(0, x.shape[1], chunk_size)
    settings = {
        "A": A,
        "D": D,
        "dt_bias": dt_bias,
        "dt_softplus": dt_softplus,
        "dt_limit": dt_limit,
        "return_final_states": True,
    }
    before, after = {}, []
    for sequence, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        state = x.new_zeros(1, *x.shape[2:], B.shape[-1], dtype=torch.float32)
        if initial_states is not None:
            state = initial_states[sequence, None].float()
        stops = {stop for stop in (*chunks, *tracked) if start < stop < end}
        for at, to in pairwise(sorted({start, end} | stops)):
            before[at] = state
            xs, dts, bs, cs = (tensor[:, at:to] for tensor in (x, dt.float(), B, C))
            y, state = mamba2_chunk_scan(xs, dts, B=bs, C=cs, chunk_size=to - at, initial_states=state, **settings)
            out[:, at:to] = y
        after.append(state)
    states = torch.cat([before[at] for at in chunks])[None].to(state_dtype)
    asked = torch.cat([before[at] for at in tracked])[None].to(state_dtype) if tracked else None
    return states, torch.cat(after).to(state_dtype), asked


def state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
    out: Tensor | None = None,
    disable_state_update: bool = False,
    **_,
) -> None:
    """One token of each request; `selective_state_update` as a decode calls it. Writes `out` and the requests' states.

    Parameters
    ----------
    state : [slots, heads, head_dim, state]
    x, dt, z, out : [requests, heads, head_dim]
    A : [heads, head_dim, state]
    B, C : [requests, groups, state]
    D, dt_bias : [heads, head_dim]
    state_batch_indices : int [requests]
        The slot of each request.
    """
    if disable_state_update:
        raise NotImplementedError("speculative decoding of state space models on the CPU: it verifies several tokens at once")
    assert state_batch_indices is not None
    assert out is not None
    slots = state_batch_indices.long()
    current = state[slots].float()
    options = {"D": D, "z": z, "dt_bias": dt_bias, "dt_softplus": dt_softplus}
    out.copy_(mamba2_selective_state_update(current, x, dt.float(), A, B, C, **options))
    state[slots] = current.to(state.dtype)


def register() -> None:
    """Scan with these in this process."""
    kernels = "sglang.kernels.ops.mamba.triton_ops"
    replace(f"{kernels}.ssd_combined", mamba_chunk_scan_combined=chunk_scan)
    replace(f"{kernels}.ssu_dispatch", selective_state_update=state_update)  # its backend holds the kernel already
    mixer = importlib.import_module("sglang.srt.layers.attention.mamba.mamba")
    for suffix in ("", "_triton"):  # without a GPU it imports neither, and calls one of them
        setattr(mixer, f"causal_conv1d_fn{suffix}", causal_conv1d_fn)
        setattr(mixer, f"causal_conv1d_update{suffix}", causal_conv1d_update)
