"""The CPU platform: where it activates and how it shares cores between ranks."""

import pytest
import sglang.srt.managers.scheduler  # noqa: F401  SGLang loads the platform, never the other way round

from specprefill_sgl import platforms


@pytest.mark.parametrize(("cuda", "named"), [(True, None), (False, "specprefill_sgl.platforms.cpu.CpuPlatform")])
def test_never_activates_where_cuda_is_present(monkeypatch, cuda, named):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert platforms.activate() == named


@pytest.mark.parametrize(
    ("cores", "ranks", "binding"),
    [([0, 1], 2, "0|1"), ([0, 1, 2, 3, 4], 2, "0,1|2,3"), ([7], 2, "7|7"), ([4, 9], 3, "4|9|4")],
)
def test_cores_per_rank(cores, ranks, binding):
    from specprefill_sgl.platforms.cpu import cores_per_rank

    assert cores_per_rank(cores, ranks) == binding


def test_logit_cap_in_place():
    import torch

    from specprefill_sgl.platforms.torch_attention import cap_in_place

    logits = torch.tensor([[-100.0, 0.0, 1.0, 100.0]])
    wanted = 30 * torch.tanh(logits / 30)
    assert cap_in_place(logits, 30.0) is logits
    torch.testing.assert_close(logits, wanted)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (8, 8)])
def test_grouped_decodes_are_those_of_the_backend_they_replace(heads, kv_heads):
    import torch
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    from specprefill_sgl.platforms.torch_attention import TorchAttention

    torch.manual_seed(0)
    keys, values = torch.randn(50, kv_heads, 16), torch.randn(50, kv_heads, 8)
    query, rows = torch.randn(3, heads, 16), torch.randperm(50)[:48].view(4, 12)
    results = []
    for backend in (TorchAttention, TorchNativeAttnBackend):
        output = torch.zeros(3, heads, 8)
        arguments = (query, output, keys, values, rows, torch.tensor([2, 0, 3]), torch.tensor([12, 1, 7]), None)
        options = {"scaling": 0.3, "enable_gqa": heads != kv_heads, "causal": False, "is_cross_attn": False}
        backend._run_sdpa_forward_decode(backend.__new__(backend), *arguments, **options, sliding_window_size=None)
        results.append(output)
    torch.testing.assert_close(*results)


_EXTENDS = [(0, 5), (7, 1), (9, 6)]  # cached and new tokens of three requests


def _extend(backend, heads, kv_heads, dtype):
    import torch

    torch.manual_seed(0)
    keys, values = (torch.randn(50, kv_heads, 16).to(dtype) for _ in range(2))
    query = torch.randn(sum(new for _, new in _EXTENDS), heads, 16).to(dtype)
    output, rows = torch.full_like(query, torch.nan), torch.randperm(50)[:48].view(3, 16)
    lengths = (torch.tensor([start + new for start, new in _EXTENDS]), *map(torch.tensor, zip(*_EXTENDS, strict=True)))
    options = {"scaling": 0.3, "enable_gqa": heads != kv_heads, "causal": True, "is_cross_attn": False}
    arguments = (query, output, keys, values, rows, torch.tensor([2, 0, 1]), *lengths, None)
    return backend._run_sdpa_forward_extend(backend.__new__(backend), *arguments, **options, sliding_window_size=None)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (8, 8)])
def test_extends_are_those_of_the_backend_they_replace(heads, kv_heads):
    import torch
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    from specprefill_sgl.platforms.torch_attention import TorchAttention

    wanted = _extend(TorchNativeAttnBackend, heads, kv_heads, torch.float64)
    for dtype, error in ((torch.float32, 2e-6), (torch.bfloat16, 0.03)):
        torch.testing.assert_close(_extend(TorchAttention, heads, kv_heads, dtype).double(), wanted, atol=error, rtol=0)


def test_a_cached_prefix_is_not_attended_from_again():
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    from specprefill_sgl.platforms.torch_attention import TorchAttention

    def flops(query, key, value, *_args, **_kwargs):
        return sdpa_flop_count(query, key, value)

    counted = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flops}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        _extend(TorchAttention, 4, 2, torch.float32)
    assert counter.get_total_flops() == sum(4 * 4 * 16 * new * (start + new) for start, new in _EXTENDS)
