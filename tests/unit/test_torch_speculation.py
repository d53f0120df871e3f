"""Attention of speculative decoding on the CPU platform: verified trees and branches of drafts, against loops over keys."""

from types import SimpleNamespace

import pytest
import sglang.srt.managers.scheduler  # noqa: F401  SGLang loads the platform, never the other way round
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from specprefill_sgl.platforms.torch_attention import TorchAttention
from specprefill_sgl.platforms.torch_speculation import TorchDraftStep

HEADS, KV_HEADS, DIM, SLOTS = 4, 2, 16, 96
LENGTHS, ROWS = [9, 0, 14], [2, 0, 1]  # committed tokens of three requests
# which of its tokens each of a tree sees: a root, two branches, a leaf under the first
TREE = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
CHAIN = torch.ones(4, 4, dtype=torch.bool).tril()


@pytest.fixture
def pools():
    """Keys, values, and the slots of each request, in which four tokens follow those that are committed."""
    torch.manual_seed(5)
    keys, values = (torch.randn(SLOTS, KV_HEADS, DIM) for _ in range(2))
    return keys, values, torch.randperm(SLOTS).view(3, 32)


def _backend(kind, pools, **attributes):
    keys, values, slots = pools
    backend = kind.__new__(kind)
    backend.req_to_token_pool = SimpleNamespace(req_to_token=slots)
    backend.token_to_kv_pool = SimpleNamespace(get_key_buffer=lambda _: keys, get_value_buffer=lambda _: values)
    for name, value in attributes.items():
        setattr(backend, name, value)
    return backend


def _batch(mode, **info):
    return SimpleNamespace(
        req_pool_indices=torch.tensor(ROWS),
        seq_lens=torch.tensor(LENGTHS),
        encoder_lens=None,
        out_cache_loc=None,
        forward_mode=mode,
        spec_info=SimpleNamespace(**info),
    )


def _wanted(pools, query, slots):
    """One token of all heads onto the keys at these slots, in float64."""
    keys, values = (one[slots].double().repeat_interleave(HEADS // KV_HEADS, dim=1) for one in pools[:2])
    weights = torch.einsum("hd,nhd->hn", query.double(), keys).mul(0.3).softmax(dim=-1)
    return torch.einsum("hn,nhd->hd", weights, values)


def _layer(window=-1):
    return RadixAttention(HEADS, DIM, 0.3, KV_HEADS, 0, sliding_window_size=window)


@pytest.mark.parametrize("topk", [1, 2, -1])
def test_each_token_of_a_tree_sees_the_prefix_and_its_ancestors(pools, topk):
    seen = CHAIN if topk == 1 else TREE
    mask = torch.cat([torch.cat([torch.ones(4, n, dtype=torch.bool), TREE], dim=1).flatten() for n in LENGTHS])
    queries = torch.randn(12, HEADS, DIM)
    batch = _batch(ForwardMode.TARGET_VERIFY, draft_token_num=4, tree_topk=topk, custom_mask=mask)
    out = _backend(TorchAttention, pools).forward_extend(queries.flatten(1), None, None, _layer(), batch, save_kv_cache=False)
    for at, query in enumerate(queries):
        row, length = ROWS[at // 4], LENGTHS[at // 4]
        slots = torch.cat([pools[2][row, :length], pools[2][row, length : length + 4][seen[at % 4]]])
        torch.testing.assert_close(out.view(12, HEADS, DIM)[at].double(), _wanted(pools, query, slots), rtol=1e-4, atol=1e-5)


def test_trees_in_windowed_layers_are_refused(pools):
    batch = _batch(ForwardMode.TARGET_VERIFY, draft_token_num=4, tree_topk=2, custom_mask=None)
    backend = _backend(TorchAttention, pools)
    with pytest.raises(NotImplementedError, match="--speculative-eagle-topk 1"):
        backend.forward_extend(torch.randn(12, HEADS * DIM), None, None, _layer(window=4), batch, save_kv_cache=False)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("topk", [1, 2])
def test_each_branch_of_a_draft_sees_the_prefix_and_itself(pools, topk, step):
    steps = 3
    backend = _backend(TorchDraftStep, pools, _topk=topk, _num_steps=steps, _step=step)
    queries = torch.randn(3 * topk, HEADS, DIM)
    batch = _batch(ForwardMode.DECODE)
    out = backend.forward_decode(queries.flatten(1), None, None, _layer(), batch, save_kv_cache=False)
    for at, query in enumerate(queries):
        row, length, start = ROWS[at // topk], LENGTHS[at // topk], LENGTHS[at // topk] + at % topk * steps
        slots = torch.cat([pools[2][row, :length], pools[2][row, start : start + step + 1]])
        torch.testing.assert_close(out.view(-1, HEADS, DIM)[at].double(), _wanted(pools, query, slots), rtol=1e-4, atol=1e-5)
