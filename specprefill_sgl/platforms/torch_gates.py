"""Gated norms and sigmoid gates in torch, for SGLang's Triton kernels of the same names. All computed in float32."""

import torch
from torch.nn.functional import silu

from specprefill_sgl.platforms.replacement import replace


def rms_norm_gated(
    *,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    z: torch.Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    activation: str = "swish",
) -> torch.Tensor:
    """norm(x) * gate(z), or norm(x * gate(z)); [..., dim], normalised over each `group_size` of the last dimension.

    Without `is_rms_norm` the mean is subtracted as well. `z` has as many elements as `x`, or is None.
    """
    values, gate = x.float(), None
    if z is not None:
        gate = z.float().reshape(x.shape)
        gate = torch.sigmoid(gate) if activation == "sigmoid" else silu(gate)
    if gate is not None and not norm_before_gate:
        values = values * gate
    groups = values.unflatten(-1, (-1, group_size or values.shape[-1]))
    if not is_rms_norm:
        groups = groups - groups.mean(dim=-1, keepdim=True)
    groups = groups * torch.rsqrt(groups.square().mean(dim=-1, keepdim=True) + eps)
    out = groups.flatten(-2) * weight.float()
    if bias is not None:
        out = out + bias.float()
    if gate is not None and norm_before_gate:
        out = out * gate
    return out.to(x.dtype)


def fused_rms_norm_gated(
    x: torch.Tensor,
    g: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str = "swish",
    residual: None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> torch.Tensor:
    """RMS norm of x times the gate of g; the signature of the other kernel that does this."""
    if residual is not None or prenorm:
        raise NotImplementedError("The CPU platform's gated norm takes no residual")
    weight = torch.ones(x.shape[-1]) if weight is None else weight
    return rms_norm_gated(x=x, weight=weight, bias=bias, z=g, eps=eps, is_rms_norm=True, activation=activation)


def fused_sigmoid_mul(
    attn_output: torch.Tensor, gate: torch.Tensor, inplace: bool = False, quant: bool = False
) -> torch.Tensor:
    """attn_output * sigmoid(gate); the gate may have its heads in a dimension of their own."""
    if quant:
        raise NotImplementedError("The CPU platform's output gate does not quantise")
    out = (attn_output.float() * torch.sigmoid(gate.float()).reshape(attn_output.shape)).to(attn_output.dtype)
    return attn_output.copy_(out) if inplace else out


def fused_gate_sigmoid_mul(hidden_states: torch.Tensor, gate_weight: torch.Tensor, shared_output: torch.Tensor) -> torch.Tensor:
    """The shared expert's part of each token: shared_output [tokens, dim] * sigmoid(hidden_states @ gate_weight [dim])."""
    return _gated(hidden_states, gate_weight, shared_output).to(shared_output.dtype)


def fused_gate_sigmoid_mul_add(
    hidden_states: torch.Tensor, gate_weight: torch.Tensor, shared_output: torch.Tensor, final_hidden_states: torch.Tensor
) -> None:
    """Add that to what the routed experts gave, in place."""
    final_hidden_states.copy_(final_hidden_states.float() + _gated(hidden_states, gate_weight, shared_output))


def _gated(hidden_states: torch.Tensor, gate_weight: torch.Tensor, shared_output: torch.Tensor) -> torch.Tensor:
    return shared_output.float() * torch.sigmoid(hidden_states.float() @ gate_weight.float())[:, None]


def register() -> None:
    """Gate with these in this process."""
    replace("sglang.kernels.ops.attention.fla.layernorm_gated", rms_norm_gated=rms_norm_gated)
    replace("sglang.kernels.ops.attention.fla.fused_norm_gate", rms_norm_gated=fused_rms_norm_gated)
    replace(
        "sglang.kernels.ops.elementwise.elementwise",
        fused_sigmoid_mul=fused_sigmoid_mul,
        fused_gate_sigmoid_mul=fused_gate_sigmoid_mul,
        fused_gate_sigmoid_mul_add=fused_gate_sigmoid_mul_add,
    )
