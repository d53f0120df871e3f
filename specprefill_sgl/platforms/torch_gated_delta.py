"""The gated delta rule in torch, for SGLang's Triton kernels of the same names: Qwen3-Next, Qwen3.5 and their like.

Of each value head a layer keeps one matrix as state. SGLang's pools hold it as [slots, value heads, value dim, key dim];
several value heads may share one key head. Everything is float32, and so are states on the way to the pool.
"""

import inspect

import torch
from torch.nn.functional import softplus

from specprefill_sgl.platforms.replacement import replace

CHUNK = 64  # tokens; SGLang's grid of states (FLA's CHUNK_SIZE), and of transformers' blocks


def fused_gdn_gating(
    A_log: torch.Tensor,  # noqa: N803 - the checkpoint's name
    a: torch.Tensor,
    b: torch.Tensor,
    dt_bias: torch.Tensor,
    beta: float = 1.0,
    threshold: float = 20.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithm of each token's decay and the strength of its update, float32 [1, tokens, heads] from [tokens, heads]."""
    decay = -A_log.float().exp() * softplus(a.float() + dt_bias.float(), beta, threshold)
    return decay[None], b.float().sigmoid().to(b.dtype).float()[None]


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    initial_state_indices: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    head_first: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    inplace_update: bool = True,
) -> tuple[torch.Tensor, None, torch.Tensor]:
    """New tokens of several sequences, by transformers' own function.

    Parameters
    ----------
    q, k : [1, tokens, key heads, key dim]
        Sequences one after the other.
    v : [1, tokens, value heads, value dim]
    g, beta : float32 [1, tokens, value heads]
        What `fused_gdn_gating` returns.
    initial_state : [slots, value heads, value dim, key dim]
        States before the first token; those after the last are written in their place where `inplace_update`.
    initial_state_indices : [sequences]
        Slot of each sequence.
    cu_seqlens : [sequences + 1]
        Where sequences start.

    Returns
    -------
    out : [1, tokens, value heads, value dim], dtype as `v`
    None
    states : float32 [1, chunks, value heads, value dim, key dim]
        Before each 64 tokens of each sequence, counted from its own first; what `extra_buffer` keeps is taken from here.
    """
    if initial_state is None or initial_state_indices is None or cu_seqlens is None or head_first or scale is not None:
        raise NotImplementedError("The CPU platform's gated delta rule takes packed sequences with states in a pool")
    out, states, group = torch.zeros_like(v), [], v.shape[2] // k.shape[2]
    starts = cu_seqlens.tolist()
    for slot, start, end in zip(initial_state_indices.tolist(), starts, starts[1:], strict=False):
        state = initial_state[slot].float().mT[None].clone()  # the slot is written before `states` are read
        for at in range(start, end, CHUNK):
            chunk = slice(at, min(at + CHUNK, end))
            states.append(state[0].mT)
            out[:, chunk], state = _delta_rule()(
                q[:, chunk].repeat_interleave(group, dim=2),
                k[:, chunk].repeat_interleave(group, dim=2),
                v[:, chunk],
                g[:, chunk],
                beta[:, chunk],
                chunk_size=CHUNK,
                initial_state=state,
                output_final_state=True,
                use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            )
        if inplace_update:
            initial_state[slot] = state[0].mT.to(initial_state.dtype)
    return out, None, torch.stack(states)[None]


def fused_recurrent_gated_delta_rule_packed_decode(
    mixed_qkv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,  # noqa: N803 - the checkpoint's name
    dt_bias: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor,
    out: torch.Tensor,
    ssm_state_indices: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each request.

    `mixed_qkv` [requests, key heads * key dim * 2 + value heads * value dim]; `a`, `b` [requests, value heads]; states in
    place as for chunks; `out` [requests, 1, value heads, value dim] is written and returned, zero for slots of -1.
    """
    heads, value_dim, key_dim = initial_state.shape[1:]
    rows = ssm_state_indices >= 0
    slots = ssm_state_indices[rows].long()
    packed = mixed_qkv[rows].float()
    values = packed[:, -heads * value_dim :].view(-1, heads, value_dim)
    queries, keys = packed[:, : -heads * value_dim].view(len(slots), 2, -1, key_dim).unbind(1)
    if use_qk_l2norm_in_kernel:
        queries, keys = _unit(queries), _unit(keys)
    group = heads // keys.shape[1]
    queries, keys = (one.repeat_interleave(group, dim=1) for one in (queries * scale, keys))  # [requests, heads, key dim]
    decay, strength = (one[0, :, :, None] for one in fused_gdn_gating(A_log, a[rows], b[rows], dt_bias))
    state = initial_state[slots].float() * decay.exp()[..., None]
    update = (values - torch.einsum("nhvk,nhk->nhv", state, keys)) * strength
    state = state + update[..., None] * keys[:, :, None]
    out.zero_()
    out[rows, 0] = torch.einsum("nhvk,nhk->nhv", state, queries).to(out.dtype)
    initial_state[slots] = state.to(initial_state.dtype)
    return out, initial_state


def fused_qkvzba_split_reshape_cat_contiguous(
    mixed_qkvz: torch.Tensor, mixed_ba: torch.Tensor, num_heads_qk: int, num_heads_v: int, head_qk: int, head_v: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Qwen3.5's projections, [all q | all k | all v | all z] and [all b | all a] of each token, taken apart.

    Returns [tokens, q | k | v], z [tokens, value heads, value dim], b and a [tokens, value heads].
    """
    qkv, z = mixed_qkvz.split([2 * num_heads_qk * head_qk + num_heads_v * head_v, num_heads_v * head_v], dim=-1)
    b, a = mixed_ba.split(num_heads_v, dim=-1)
    return qkv.contiguous(), z.reshape(-1, num_heads_v, head_v), b.contiguous(), a.contiguous()


def fused_qkvzba_split_reshape_cat(
    mixed_qkvz: torch.Tensor, mixed_ba: torch.Tensor, num_heads_qk: int, num_heads_v: int, head_qk: int, head_v: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Qwen3-Next's projections, [q | k | v | z] and [b | a] of each key head with its value heads, taken apart alike."""
    group = num_heads_v // num_heads_qk
    of_heads = mixed_qkvz.unflatten(-1, (num_heads_qk, -1))
    q, k, v, z = of_heads.split([head_qk, head_qk, group * head_v, group * head_v], dim=-1)
    b, a = mixed_ba.unflatten(-1, (num_heads_qk, 2 * group)).split(group, dim=-1)
    qkv = torch.cat([one.flatten(1) for one in (q, k, v)], dim=-1)
    return qkv, z.reshape(-1, num_heads_v, head_v), b.flatten(1), a.flatten(1)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Of length one; the kernel's epsilon."""
    return vectors * torch.rsqrt(vectors.square().sum(dim=-1, keepdim=True) + 1e-6)


def _delta_rule():
    """transformers' torch function itself, without what looks for kernels to run in its place."""
    from transformers.models.qwen3_next import modeling_qwen3_next  # imported only where such a model is served

    return inspect.unwrap(modeling_qwen3_next.torch_chunk_gated_delta_rule)


def register() -> None:
    """Run the gated delta rule with these in this process."""
    replace("sglang.kernels.ops.attention.linear.fused_gdn_gating", fused_gdn_gating=fused_gdn_gating)
    replace("sglang.kernels.ops.attention.fla.chunk", chunk_gated_delta_rule=chunk_gated_delta_rule)
    replace(
        "sglang.kernels.ops.attention.fla.fused_recurrent",
        fused_recurrent_gated_delta_rule_packed_decode=fused_recurrent_gated_delta_rule_packed_decode,
    )
    replace(
        "sglang.kernels.ops.attention.triton_gdn_fused_proj",
        fused_qkvzba_split_reshape_cat=fused_qkvzba_split_reshape_cat,
        fused_qkvzba_split_reshape_cat_contiguous=fused_qkvzba_split_reshape_cat_contiguous,
    )
