"""KV that was not computed by the target becomes a prefix in its radix cache, by a request that nobody sent."""

from array import array
from typing import Any

import torch
from sglang.srt.mem_cache.common import checkpoint_kv_cache

from specprefill_sgl.models.unsent import UnsentReq, extend_batch, give_back


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
        req = _Shadow("spec-prefill-prediction", ids, namespace)
        req.init_next_round_input(scheduler.tree_cache)
        if req.prefix_len >= len(ids):
            return Prefix(req, None)
        req.lock = scheduler.tree_cache.lock(req.last_node)
        req.extend_end = len(ids)
        try:
            batch = extend_batch([req], scheduler, scheduler.tree_cache)
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
        give_back(prefix.req, self._scheduler.tree_cache)


class Prefix:
    """A prefix on its way into the radix cache.

    Attributes
    ----------
    req : UnsentReq
    cached : int
        Leading tokens that it holds already.
    slots : int64 [tokens] or None
        Where the others' KV is to be written; None: there are none.
    """

    def __init__(self, req: UnsentReq, slots: torch.Tensor | None):
        self.req, self.cached, self.slots = req, req.prefix_len, slots


class _Shadow(UnsentReq):
    """All of it may be found in the cache: nothing is to be sampled after it."""

    def _compute_max_prefix_len(self, input_len: int) -> int:
        return input_len
