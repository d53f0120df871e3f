"""The compiled kernels at full length against plain torch on the same device."""

import pytest
import torch

from specprefill_sgl.scoring import torch_scoring
from specprefill_sgl.scoring.packed import pack
from specprefill_sgl.scoring.triton_scoring import accumulate_votes
from specprefill_sgl.selection.importance import chunk_scores
from specprefill_sgl.selection.rule import PAPER

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LONG = 131_072
MEGABYTE = 2**20


def group_of(lengths, n_votes, *, votes, heads, kv_heads, dim, dtype, visible=None, counted=None):
    torch.manual_seed(0)
    slots = torch.randperm(sum(lengths) + 100, device="cuda")[: sum(lengths)]
    keys = torch.randn(sum(lengths) + 100, kv_heads, dim, device="cuda").to(dtype)
    queries = (2 * torch.randn(len(lengths), votes, heads, dim, device="cuda")).to(dtype)
    visible = [[n] * one for n, one in zip(lengths, n_votes, strict=True)] if visible is None else visible
    counted = [(0, n) for n in lengths] if counted is None else counted
    return pack(slots.split(lengths), visible, counted), queries, keys


@pytest.mark.parametrize("cap", [0.0, 30.0])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype"),
    [
        (32, 8, 64, torch.bfloat16),
        (32, 8, 128, torch.bfloat16),
        (28, 4, 128, torch.float16),
        (8, 4, 256, torch.bfloat16),
        (8, 2, 80, torch.bfloat16),
        (4, 2, 64, torch.float32),
    ],
)
def test_one_long_prompt_in_little_scratch(heads, kv_heads, dim, dtype, cap):
    packed, queries, keys = group_of([LONG], [8], votes=8, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype)
    settings = {"scaling": dim**-0.5, "logit_cap": cap, "pool_kernel": 13}
    got = torch.zeros(8, LONG, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    accumulate_votes(got, queries, keys, packed, **settings)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 4 * MEGABYTE
    want = torch_scoring.layer_votes(queries[0], keys[packed.slots], **settings)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-7)  # both round: 1e-4 against float64 is tests/unit's
    scores = [chunk_scores(votes, 0, PAPER) for votes in (got, want)]
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("cap", [0.0, 30.0])
@pytest.mark.parametrize(("dim", "dtype"), [(64, torch.bfloat16), (128, torch.bfloat16), (64, torch.float32)])
def test_a_window_of_a_long_prompt_by_chosen_heads(dim, dtype, cap):
    """48 queries before their future, attention at both ends uncounted, and lookahead behind them: 56 votes."""
    visible, counted = [*range(LONG - 47, LONG + 1), *[LONG] * 8], (4, LONG - 48)
    shape = {"votes": 56, "heads": 32, "kv_heads": 8, "dim": dim, "dtype": dtype}
    packed, queries, keys = group_of([LONG], [56], **shape, visible=[visible], counted=[counted])
    settings = {"scaling": dim**-0.5, "logit_cap": cap, "pool_kernel": 31, "heads": [30, 3, 2, 17]}
    got = torch.zeros(56, LONG, device="cuda")
    accumulate_votes(got, queries, keys, packed, **settings)
    sees = torch.tensor(visible, device="cuda")
    want = torch_scoring.layer_votes(queries[0], keys[packed.slots], **settings, visible=sees, counted=counted)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-7)


def test_a_mixed_group_over_layers():
    lengths, n_votes = [40_000, 1, 513, 9_000, 64], [8, 8, 3, 0, 5]
    shape = {"votes": 8, "heads": 32, "kv_heads": 8, "dim": 64, "dtype": torch.bfloat16}
    packed, queries, keys = group_of(lengths, n_votes, **shape)
    settings = {"scaling": 0.125, "logit_cap": 0.0, "pool_kernel": 13}
    got = torch.zeros(8, sum(lengths), device="cuda")
    for layer_keys in (keys, keys.flip(0)):
        accumulate_votes(got, queries, layer_keys, packed, **settings)
    columns = packed.slots.split(lengths)
    for prompt, (own, slots, valid) in enumerate(zip(got.split(lengths, dim=1), columns, n_votes, strict=True)):
        assert not own[valid:].any()
        if valid:
            layers = (torch_scoring.layer_votes(queries[prompt, :valid], k[slots], **settings) for k in (keys, keys.flip(0)))
            torch.testing.assert_close(own[:valid], torch_scoring.max_votes(layers), rtol=1e-3, atol=1e-7)


def test_chosen_heads_replay_in_a_graph():
    """Capture refuses whatever waits for the device, so this is also that nothing does."""
    packed, queries, keys = group_of([9_000], [8], votes=8, heads=32, kv_heads=8, dim=64, dtype=torch.bfloat16)
    settings = {"scaling": 0.125, "logit_cap": 0.0, "pool_kernel": 13, "heads": [30, 3, 2]}
    want, got = (torch.zeros(8, 9_000, device="cuda") for _ in range(2))
    accumulate_votes(want, queries, keys, packed, **settings)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        accumulate_votes(got, queries, keys, packed, **settings)
    graph.replay()
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_the_largest_tiles_launch():
    """Heads of 256 in a window under the widest pooling, which shared memory must still hold."""
    for dtype in (torch.bfloat16, torch.float32):
        shape = {"votes": 64, "heads": 8, "kv_heads": 1, "dim": 256, "dtype": dtype}
        packed, queries, keys = group_of([3_000], [64], **shape)
        for heads in (None, [5, 1]):
            settings = {"scaling": 256**-0.5, "logit_cap": 0.0, "pool_kernel": 63, "heads": heads}
            got = torch.zeros(64, 3_000, device="cuda")
            accumulate_votes(got, queries, keys, packed, **settings)
            want = torch_scoring.layer_votes(queries[0], keys[packed.slots], **settings)
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-7)


def test_the_same_twice():
    packed, queries, keys = group_of([LONG], [8], votes=8, heads=32, kv_heads=8, dim=64, dtype=torch.bfloat16)
    runs = [torch.zeros(8, LONG, device="cuda") for _ in range(2)]
    for out in runs:
        accumulate_votes(out, queries, keys, packed, scaling=0.125, logit_cap=0.0, pool_kernel=13)
    torch.testing.assert_close(*runs, rtol=0, atol=0)
