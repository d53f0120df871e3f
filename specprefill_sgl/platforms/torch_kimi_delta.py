"""Kimi delta attention (KDA) on a CPU: SGLang's calls, answered by transformers' reference functions.

SGLang keeps one state per request, float32 [slots, heads, V, K], and packs the sequences of a batch behind each other;
transformers' states are [batch, heads, K, V], and its sequences rows of a batch.
"""

import functools
import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention, recurrent_kimi_delta_attention

from specprefill_sgl.platforms.replacement import replace
from specprefill_sgl.platforms.torch_gated_delta import CHUNK


def forget_gate(
    raw: Tensor,
    A_log: Tensor,  # noqa: N803
    dt_bias: Tensor,
    lower_bound: float | None = None,
) -> Tensor:
    """Logarithm of the decay of each key channel, float32 [..., heads, K] as `raw`.

    `A_log` has one value a head, `dt_bias` one a head and channel. With `lower_bound` it is SGLang's safe gate.
    """
    heads, channels = raw.shape[-2:]
    rate = A_log.float().reshape(heads, 1).exp()
    shifted = raw.float() + dt_bias.float().reshape(heads, channels)
    if lower_bound is not None:
        return lower_bound * torch.sigmoid(rate * shifted)
    return -rate * softplus(shifted)


def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
    A_log: Tensor,  # noqa: N803
    dt_bias: Tensor,
    lower_bound: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    beta_is_raw: bool = False,
    output_intermediate_states: bool = False,
    track_state: Tensor | None = None,
    track_chunk_idx: Tensor | None = None,
    **_,
) -> Tensor | tuple[Tensor, None]:
    """Attend in the sequences of a prefill; writes their states to their slots.

    Parameters
    ----------
    q, k, g : [1, tokens, heads, K]
        `g` before `forget_gate`.
    v : [1, tokens, heads, V]
    beta : [1, tokens, heads]
    initial_state : [slots, heads, V, K]
        Zeros in the slots of new requests.
    initial_state_indices : int [sequences]
    cu_seqlens : int [sequences + 1]
    track_state : [sequences, heads, V, K], optional
        Receives the state before chunk `track_chunk_idx` of each sequence where that is not negative.

    Returns
    -------
    out : [1, tokens, heads, V]
        And None where states between the chunks are asked for: SGLang reads those of `track_state`.
    """
    decay = forget_gate(g, A_log, dt_bias, lower_bound)
    weight = beta.float().sigmoid() if beta_is_raw else beta
    out = torch.empty_like(v)
    chunks = [-1] * len(initial_state_indices) if track_chunk_idx is None else track_chunk_idx.tolist()
    sequences = zip(pairwise(cu_seqlens.tolist()), initial_state_indices.tolist(), chunks, strict=True)
    for sequence, ((start, end), slot, chunk) in enumerate(sequences):
        state = initial_state[slot, None].mT.float()
        stop = start + chunk * CHUNK if chunk >= 0 else start
        for at, to in pairwise((start, stop, end)):
            if to > at:
                tokens = (tensor[:, at:to] for tensor in (q, k, v, decay, weight))
                out[:, at:to], state = chunk_kimi_delta_attention(
                    *tokens,
                    chunk_size=CHUNK,
                    initial_state=state,
                    output_final_state=True,
                    use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
                )
            if to == stop and chunk >= 0 and track_state is not None:
                track_state[sequence] = state[0].mT
        initial_state[slot] = state[0].mT.to(initial_state.dtype)
    return (out, None) if output_intermediate_states else out


def packed_decode(
    mixed_qkv: Tensor,
    a: Tensor,
    b: Tensor,
    A_log: Tensor,  # noqa: N803
    dt_bias: Tensor,
    scale: float,
    initial_state: Tensor,
    out: Tensor,
    ssm_state_indices: Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    lower_bound: float | None = None,
) -> None:
    """One token of each request; `fused_recurrent_kda_packed_decode`. Writes `out` and the requests' states.

    Parameters
    ----------
    mixed_qkv : [requests, 2 * heads * K + heads * V]
    a : [requests, heads * K]
        The gate's input.
    b : [requests, heads]
        Beta before its sigmoid.
    initial_state : [slots, heads, V, K]
    out : [requests, 1, heads, V]
    ssm_state_indices : int [requests]
    """
    requests, _, heads, values = out.shape
    keys = initial_state.shape[-1]
    assert scale == keys**-0.5  # transformers takes no other
    q, k, v = mixed_qkv.split([heads * keys, heads * keys, heads * values], dim=-1)
    q, k, gate = (tensor.reshape(requests, 1, heads, keys) for tensor in (q, k, a))
    slots = ssm_state_indices.long()
    attended, state = recurrent_kimi_delta_attention(
        q,
        k,
        v.reshape(requests, 1, heads, values),
        forget_gate(gate, A_log, dt_bias, lower_bound),
        b.float().sigmoid()[:, None],
        initial_state=initial_state[slots].mT.float(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
    )
    out.copy_(attended)
    initial_state[slots] = state.mT.to(initial_state.dtype)


def scales_routed_experts(build: Callable[..., None]) -> Callable[..., None]:
    """`KimiMoE.__init__`, but with the router scaling its weights by `routed_scaling_factor`.

    SGLang leaves that to the kernels that run the experts; its torch one (`moe_forward_native`) does not do it.
    """

    @functools.wraps(build)
    def built(self: Any, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        self.topk.topk_config.apply_routed_scaling_factor_on_output = True

    return built


def register() -> None:
    """Attend with these in this process."""
    kernels = "sglang.kernels.ops.attention.fla"
    replace(f"{kernels}.kda", chunk_kda=chunk_kda)
    replace(f"{kernels}.fused_recurrent", fused_recurrent_kda_packed_decode=packed_decode)
    experts = importlib.import_module("sglang.srt.models.kimi_linear").KimiMoE
    experts.__init__ = scales_routed_experts(experts.__init__)
