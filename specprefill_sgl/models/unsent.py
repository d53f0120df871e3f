"""Prompts as SGLang's requests that nobody sent: on a model's pools, from a match in a prefix cache to what is given back."""

from array import array
from collections.abc import Sequence
from typing import Any

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm


class UnsentReq(Req):
    """A greedy request, of whose prompt no log-probabilities are wanted.

    Parameters
    ----------
    rid : str
    ids : array
    namespace : tuple
        `extra_key` and `cache_salt`.
    """

    def __init__(self, rid: str, ids: array, namespace: tuple):
        params = SamplingParams(temperature=0, max_new_tokens=1)
        params.normalize(None)
        extra_key, cache_salt = namespace
        super().__init__(
            rid=rid,
            origin_input_text="",
            origin_input_ids=ids,
            sampling_params=params,
            extra_key=extra_key,
            cache_salt=cache_salt,
        )
        self.logprob_start_len = -1


def extend_batch(reqs: Sequence[UnsentReq], pools: Any, tree: Any) -> ScheduleBatch:
    """A batch that extends each request to its `extend_end`, slots allocated.

    `pools` has them and the model's configuration: a model runner, or the scheduler for the target's.
    """
    batch = ScheduleBatch.init_new(
        reqs=list(reqs),
        req_to_token_pool=pools.req_to_token_pool,
        token_to_kv_pool_allocator=pools.token_to_kv_pool_allocator,
        tree_cache=tree,
        model_config=pools.model_config,
        enable_overlap=False,
        spec_algorithm=SpeculativeAlgorithm.NONE,
    )
    batch.prepare_for_extend()
    return batch


def give_back(req: UnsentReq, tree: Any) -> None:
    """Row, slots that are not the cache's, state and lock. What was checkpointed stays cached, evictable."""
    if req.kv.holds_kv or req.kv.holds_mamba:  # a match alone may have copied a state
        release_kv_cache(req, tree, checkpoint=False)
    if req.lock is not None:
        tree.unlock(req.lock)
        req.lock = None
