"""The CPU platform's gated norms and gates equal transformers' modules, or the formula in float64."""

import pytest
import torch
from torch.nn.functional import silu
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from specprefill_sgl.platforms import torch_gates as ours

TOKENS, DIM = 5, 12


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_gated_norm_equals_transformers():
    """Both kernels' signatures."""
    norm = Qwen3NextRMSNormGated(DIM, eps=1e-5)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    x, z = torch.randn(2, TOKENS, DIM)
    with torch.no_grad():
        expected = norm(x, gate=z)
        one = ours.rms_norm_gated(x=x, weight=norm.weight, bias=None, z=z, eps=1e-5, is_rms_norm=True)
        other = ours.fused_rms_norm_gated(x, z, norm.weight, None, "silu", eps=1e-5)
    torch.testing.assert_close(one, expected)
    torch.testing.assert_close(other, expected)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("activation", ["swish", "sigmoid"])
@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("rms", [True, False])
def test_norms_of_groups(before, activation, group_size, rms):
    x, z = torch.randn(2, TOKENS, DIM)
    weight, bias = torch.randn(2, DIM)
    options = {"norm_before_gate": before, "activation": activation, "group_size": group_size, "is_rms_norm": rms}
    out = ours.rms_norm_gated(x=x, weight=weight, bias=bias, z=z, eps=1e-3, **options)
    gate = (silu if activation == "swish" else torch.sigmoid)(z.double())
    values = x.double() if before else x.double() * gate
    size, normed = group_size or DIM, torch.empty(TOKENS, DIM, dtype=torch.float64)
    for start in range(0, DIM, size):
        part = values[:, start : start + size]
        if not rms:
            part = part - part.mean(dim=1, keepdim=True)
        normed[:, start : start + size] = part / (part.pow(2).mean(dim=1, keepdim=True) + 1e-3).sqrt()
    expected = normed * weight + bias
    torch.testing.assert_close(out, (expected * gate if before else expected).float())


@pytest.mark.parametrize("inplace", [True, False])
def test_output_gate_of_heads(inplace):
    """The gate is a strided view with its heads apart, as Qwen3.5's projection leaves it."""
    attention, projected = torch.randn(TOKENS, DIM), torch.randn(TOKENS, 3, 8)
    gate = projected[:, :, 4:]
    expected = attention * torch.sigmoid(gate.reshape(TOKENS, DIM))
    given = attention.clone()
    out = ours.fused_sigmoid_mul(given, gate, inplace=inplace)
    torch.testing.assert_close(out, expected)
    assert (out is given) == inplace
    assert inplace or (given == attention).all()


def test_shared_expert():
    hidden, shared, routed = torch.randn(3, TOKENS, DIM)
    weight = torch.randn(DIM)
    gate = 1 / (1 + torch.exp(-(hidden.double() * weight.double()).sum(dim=1, keepdim=True)))
    expected = (shared * gate).float()
    torch.testing.assert_close(ours.fused_gate_sigmoid_mul(hidden, weight, shared), expected)
    total = routed.clone()
    assert ours.fused_gate_sigmoid_mul_add(hidden, weight, shared, total) is None
    torch.testing.assert_close(total, routed + expected)
