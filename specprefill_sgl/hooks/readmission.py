"""A running request goes back to the queue and is prefilled again, on other ids: SGLang's own retraction, from outside of it.

Its slots are released, it waits in front of the queue, and what the radix cache has of its new prompt is not computed again.

One iteration must lie between retraction and admission. Under the overlap schedule a decode of the old prompt is in flight when
a request is retracted; SGLang drops its token only while the request is marked as retracted, which its admission ends. So it is
hidden from the admission of the same iteration; the token is sampled again. So is all that waits, or another request would take
its place.
"""

from collections.abc import Sequence
from typing import Any

from specprefill_sgl.compat import SHORTEST_QUEUE
from specprefill_sgl.models.sizes import MAX_PROMPTS
from specprefill_sgl.request.state import state_of

_CLIP = 4096  # what SGLang reserves at most for a request's tokens to come


def may_go_back(req: Any) -> bool:
    """Whether a running request is far enough from its end to be retracted for another prompt; a token may be in flight."""
    if req.finished() or req.to_finish is not None:
        return False
    return req.sampling_params.max_new_tokens - len(req.output_ids) > 2


def has_spoken(req: Any) -> bool:
    """Whether it said anything since it was last retracted, by whomever: else its prefill may be in flight."""
    state = state_of(req)
    assert state is not None
    if req.retraction_count != state.retractions:
        state.retractions, state.said_then = req.retraction_count, len(req.output_ids)
    return len(req.output_ids) > state.said_then


def others_return(scheduler: Any) -> bool:
    """Whether retracted requests wait: they return first, or the queue would stay hidden."""
    return any(req.is_retracted for req in scheduler.waiting_queue)


def queue_room(limit: int | None, waiting: int) -> int:
    """How many requests may go back to a queue of at most so many, of which some wait.

    A place stays free: SGLang aborts a request that does not fit, be it retracted, and so refuses one that arrives meanwhile.
    """
    return MAX_PROMPTS if limit is None else max(limit - waiting - (SHORTEST_QUEUE - 1), 0)


def comes_first(scheduler: Any, req: Any) -> bool:
    """Whether a request in front of the queue would be admitted before what waits: SGLang may order the queue anew."""
    if not scheduler.waiting_queue:
        return True
    if scheduler.policy.policy.value != "fcfs":
        return False
    if not scheduler.enable_priority_scheduling:
        return True
    sign = scheduler.policy.priority_sign
    return all(sign * req.priority < sign * one.priority for one in scheduler.waiting_queue)


def has_room(scheduler: Any, running_batch: Any, returning: Sequence[tuple[Any, int]]) -> bool:
    """Whether requests, with so many prompt tokens more each, would all be admitted at once, by what SGLang reserves."""
    back = {id(req) for req, _ in returning}
    reserved = reserved_tokens(scheduler, [req for req in running_batch.reqs if id(req) not in back])
    needed = sum(more + len(req.output_ids) + _to_come(req) + 2 * scheduler.page_size for req, more in returning)
    return free_tokens(scheduler) > reserved + needed


def reserved_tokens(scheduler: Any, running: Sequence[Any]) -> float:
    """What SGLang keeps free for the tokens that running requests may say yet: all of them where an end is ignored."""
    ratio = scheduler.new_token_ratio_tracker.current
    return sum(_to_come(req) * (1.0 if req.sampling_params.ignore_eos else ratio) for req in running)


def free_tokens(scheduler: Any) -> int:
    """Slots that are free, or hold what the radix cache may lose."""
    return scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size()


def _to_come(req: Any) -> int:
    return min(max(req.sampling_params.max_new_tokens - len(req.output_ids), 0), _CLIP)


def retract(running_batch: Any, req: Any) -> None:
    """Out of the batch, as SGLang does when its pool is full; it is nowhere until it waits again."""
    index = next(at for at, one in enumerate(running_batch.reqs) if one is req)
    running_batch.release_req(index, 0)
    running_batch.filter_batch(keep_indices=[at for at in range(len(running_batch.reqs)) if at != index])
    running_batch.batch_is_full = False


def wait_again(scheduler: Any, req: Any, place: int) -> None:
    """To this place in the queue, with the ids it is to be prefilled with: SGLang looks for their KV in a storage."""
    scheduler._add_request_to_queue(req, is_retracted=True)
    queue = scheduler.waiting_queue
    queue.insert(place, queue.pop())
