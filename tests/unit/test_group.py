"""A group of prompts on SGLang's own radix cache: how much of each is read anew."""

from array import array
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.selection.rule import Rule

PROMPT, CHUNK = 40, 64
RULE = Rule(lookahead=1, window=1)


@pytest.fixture
def group_of(published):
    """Makes the group of prompts whose answers are asked, all of whose tokens are in the cache."""
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey

    from specprefill_sgl.models.group import PromptGroup

    def make(*prompts):
        pools = {"req_to_token_pool": None, "token_to_kv_pool_allocator": None}
        tree = RadixCache(CacheInitParams(disable=False, page_size=1, **pools))
        for one in prompts:
            ids = one.ids + one.answer
            tree.insert(InsertParams(key=RadixKey(ids, None), value=torch.arange(len(ids))))
        runner = SimpleNamespace(device="cpu", model_config=SimpleNamespace(hf_eos_token_id={1}))
        return PromptGroup(runner, SimpleNamespace(), tree, prompts, chunk_tokens=CHUNK)

    return make


def _asked(said, fresh, seed):
    ids = array("q", np.random.default_rng(seed).integers(2, 500, PROMPT))
    return Prompt(ids=ids, keep_ratio=0.2, rule=RULE, kept=np.arange(9), answer=array("q", range(2, 2 + said)), fresh=fresh)


def test_of_each_answer_what_votes_is_read_whatever_votes_of_its_neighbours(group_of):
    """A reader with a recurrent state has one where the answer ended when last asked; cut off earlier, it finds none there."""
    group = group_of(_asked(12, 3, seed=0), _asked(30, 25, seed=1), _asked(9, 1, seed=2))
    assert group.cached == [PROMPT + 9, PROMPT + 5, PROMPT + 8]


def test_no_more_votes_than_one_forward_holds(group_of):
    group = group_of(_asked(100, 90, seed=0))
    assert group.cached == [PROMPT + 100 - CHUNK]
