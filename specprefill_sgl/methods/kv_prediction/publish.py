"""KV that was not computed by the target becomes a prefix in its radix cache, by a request that nobody sent."""

from array import array
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.mem_cache.common import checkpoint_kv_cache, release_kv_cache
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm


class Publisher:
    """Allocates slots of the target's pool as SGLang does for a prompt, and gives what is written there to its radix cache.

    Nothing is locked once it is published: the request that it is for may find that it is gone (`hooks.prediction`).

    Parameters
    ----------
    scheduler : Scheduler
    """

    def __init__(self, scheduler: Any):
        self._scheduler = scheduler

    @property
    def is_ready(self) -> bool:
        """Whether SGLang has made its radix cache; at the first prompt, before the server is up, it has not."""
        return getattr(self._scheduler, "tree_cache", None) is not None

    @property
    def page_size(self) -> int:
        """Of the target's pool: whole pages are published."""
        return self._scheduler.page_size

    def has_room(self, tokens: int) -> bool:
        """Whether so many slots are free, or hold what may be evicted, and a row of the request table is."""
        scheduler = self._scheduler
        free = scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size()
        return free >= tokens + scheduler.page_size and scheduler.req_to_token_pool.available_size() > 0

    def room_will_come(self) -> bool:
        """Whether something runs that will end."""
        return not self._scheduler.running_batch.is_empty() or self._scheduler.chunked_req is not None

    def allocate(self, ids: array, namespace: tuple) -> "Prefix":
        """Slots for those ids that the radix cache does not hold yet; the prefix must be published or given back."""
        scheduler = self._scheduler
        req = _Shadow(ids, namespace)
        req.init_next_round_input(scheduler.tree_cache)
        if req.prefix_len >= len(ids):
            return Prefix(req, None)
        req.lock = scheduler.tree_cache.lock(req.last_node)
        req.extend_end = len(ids)
        try:
            batch = ScheduleBatch.init_new(
                reqs=[req],
                req_to_token_pool=scheduler.req_to_token_pool,
                token_to_kv_pool_allocator=scheduler.token_to_kv_pool_allocator,
                tree_cache=scheduler.tree_cache,
                model_config=scheduler.model_config,
                enable_overlap=False,
                spec_algorithm=SpeculativeAlgorithm.NONE,
            )
            batch.prepare_for_extend()
        except Exception:
            self.give_back(Prefix(req, None))
            raise
        return Prefix(req, batch.out_cache_loc)

    def publish(self, prefix: "Prefix") -> None:
        """What was written becomes the cache's."""
        if prefix.slots is not None:
            checkpoint_kv_cache(prefix.req, self._scheduler.tree_cache)
        self.give_back(prefix)

    def give_back(self, prefix: "Prefix") -> None:
        """Row, lock, and slots that are not the cache's."""
        req, tree = prefix.req, self._scheduler.tree_cache
        if req.kv.holds_kv:
            release_kv_cache(req, tree, checkpoint=False)
        if req.lock is not None:
            tree.unlock(req.lock)
            req.lock = None


class Prefix:
    """A prefix on its way into the radix cache.

    Attributes
    ----------
    req : Req
    cached : int
        Leading tokens that it holds already.
    slots : int64 [tokens] or None
        Where the others' KV is to be written; None: there are none.
    """

    def __init__(self, req: Req, slots: torch.Tensor | None):
        self.req, self.cached, self.slots = req, req.prefix_len, slots


class _Shadow(Req):
    """All of it may be found in the cache: nothing is to be sampled after it."""

    def __init__(self, ids: array, namespace: tuple):
        params = SamplingParams(temperature=0, max_new_tokens=1)
        params.normalize(None)
        extra_key, cache_salt = namespace
        super().__init__(
            rid="spec-prefill-prediction",
            origin_input_text="",
            origin_input_ids=ids,
            sampling_params=params,
            extra_key=extra_key,
            cache_salt=cache_salt,
        )
        self.logprob_start_len = -1

    def _compute_max_prefix_len(self, input_len: int) -> int:
        return input_len
