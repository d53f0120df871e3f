"""Dropped tokens are prefilled when there is time: for the turn that may follow, or for the rest of the answer.

An internal request of the plain prompt computes the next piece of it, after what the radix cache has of it already. It is in
the queue only during one admission, and only if nothing else waits; it is never chunked, so that what arrives waits for one
piece at most, and decodes lie between two pieces. It ends with its prefill, which leaves its KV in the radix cache, and nobody
hears of it.

When the whole prompt is there, the turn that follows finds an exact prefix; or the request itself goes back to the queue
(`hooks.readmission`) with its plain ids and is from there on a dense request that continues its own answer.
"""

import contextlib
from array import array
from collections.abc import Iterator
from typing import Any

from specprefill_sgl.hooks.answers import drop_turn, open_turns
from specprefill_sgl.hooks.backfill_jobs import Job, end, jobs_of
from specprefill_sgl.hooks.decisions import cached_tokens, never_cached, prompt_of, replace_ids
from specprefill_sgl.hooks.internal_state import metrics_of
from specprefill_sgl.hooks.readmission import (
    comes_first,
    free_tokens,
    has_room,
    has_spoken,
    may_go_back,
    others_return,
    queue_room,
    reserved_tokens,
    retract,
    wait_again,
)
from specprefill_sgl.request.state import sparse_state_of
from specprefill_sgl.stage.stage import Stage

_PIECE = "_spec_prefill_piece"  # marks internal requests
_DECODES = "_spec_prefill_decodes"  # since the last prefill


def look_after(scheduler: Any, stage: Stage) -> None:
    """Follow the requests that asked for it, and the piece in flight. Before SGLang schedules."""
    last = scheduler.last_batch
    if last is not None:
        decoded = last.forward_mode.is_decode() or last.forward_mode.is_mixed()
        setattr(scheduler, _DECODES, _decodes(scheduler) + 1 if decoded else 0)
    if any(_is_piece(req) for req in scheduler.waiting_queue):  # preempted or retracted for others, it would wait on
        scheduler.waiting_queue = [req for req in scheduler.waiting_queue if not _is_piece(req)]
    for job in list(jobs_of(scheduler)):
        if job.req is not None and (job.req.finished() or job.req.to_finish is not None):
            _answered(scheduler, job)
    for job in list(jobs_of(scheduler)):
        if job.piece is not None and job.piece.is_retracted:
            job.piece = None
        elif job.piece is not None and job.piece.finished():
            job.piece, before = None, job.covered
            _look(scheduler, stage, job)
            if job.covered <= before:
                end(scheduler, job, "lost")  # evicted as fast as it is computed, or nothing of it can be cached


def _answered(scheduler: Any, job: Job) -> None:
    """A final answer belongs to what the next turn begins with; nothing is left to do for the answer itself."""
    req = job.req
    if job.mode == "answer" or req.to_finish is not None or req.finished_reason.to_json()["type"] == "abort":
        end(scheduler, job, "cancelled")
    else:
        job.req, job.ids = None, job.ids + req.output_ids[:-1]  # the last token's KV is in no cache


def _look(scheduler: Any, stage: Stage, job: Job) -> None:
    """What the radix cache has by now; a prompt that is all there is asked of no draft any more."""
    was_there = job.covered >= job.prompt_tokens - never_cached(scheduler, stage)
    job.covered = cached_tokens(scheduler, job.ids, job.namespace)
    if not was_there and job.covered >= job.prompt_tokens - never_cached(scheduler, stage):
        stage.turns.forget(job.ids[: job.prompt_tokens], job.namespace)


def _is_whole(scheduler: Any, stage: Stage, job: Job) -> bool:
    return job.covered >= len(job.ids) - never_cached(scheduler, stage)


def make_exact(scheduler: Any, stage: Stage, running_batch: Any) -> list[Any]:
    """Give requests whose prompt is all there the plain ids; those that were retracted for it, which wait in the queue."""
    back: list[Any] = []
    jobs = [job for job in jobs_of(scheduler) if job.mode == "answer" and job.req is not None]
    if not jobs or others_return(scheduler):
        return back
    running = {id(req) for req in running_batch.reqs}
    for job in jobs:
        if id(job.req) in running and _is_whole(scheduler, stage, job) and _may_switch(scheduler, running_batch, job):
            _look(scheduler, stage, job)
            if _is_whole(scheduler, stage, job):
                _switch(scheduler, stage, running_batch, job.req, job.ids, place=len(back))
                end(scheduler, job, "exact")
                back.append(job.req)
    return back


def _may_switch(scheduler: Any, running_batch: Any, job: Job) -> bool:
    req = job.req
    if not queue_room(scheduler.max_queued_requests, len(scheduler.waiting_queue)):  # with those that are back in it
        return False
    if sparse_state_of(req) is None or not (may_go_back(req) and has_spoken(req) and comes_first(scheduler, req)):
        return False
    return has_room(scheduler, running_batch, [(req, len(job.ids))])  # what is cached of it cannot be evicted for it


def _switch(scheduler: Any, stage: Stage, running_batch: Any, req: Any, ids: array, *, place: int) -> None:
    """To the plain ids, for good."""
    retract(running_batch, req)
    state = sparse_state_of(req)
    assert state is not None
    state.backfill(len(req.output_ids))
    replace_ids(req, ids)
    wait_again(scheduler, req, place)
    drop_turn(scheduler, req)
    if stage.after_snapshot:
        open_turns(scheduler).append((req, stage.remember_whole(prompt_of(req, stage))))


@contextlib.contextmanager
def a_piece(scheduler: Any, stage: Stage, running_batch: Any) -> Iterator[None]:
    """While SGLang admits: the next piece is in the queue, if there is time for one."""
    job = _next(scheduler, stage, running_batch)
    if job is None:
        yield
        return
    piece = _piece(scheduler, job, _size(scheduler, stage, running_batch))
    was_full = running_batch.batch_is_full
    scheduler.waiting_queue = [piece]
    try:
        yield
    finally:
        if any(req is piece for req in scheduler.waiting_queue):
            scheduler.waiting_queue = [req for req in scheduler.waiting_queue if req is not piece]
            running_batch.batch_is_full = was_full
        else:
            job.piece = piece
            metrics_of(scheduler).backfilled_tokens(piece.extend_end - piece.prefix_len)


def _next(scheduler: Any, stage: Stage, running_batch: Any) -> Job | None:
    """The job that may go on now: of answers that are being written first."""
    jobs = jobs_of(scheduler)
    if not jobs or not _has_time(scheduler, stage) or any(job.piece is not None for job in jobs):
        return None
    for job in sorted(jobs, key=lambda job: job.mode != "answer"):
        is_new = job.req is not None and not job.req.output_ids  # its own prefill comes first
        if is_new or not _may_go_on(scheduler, stage, running_batch, job):
            continue
        _look(scheduler, stage, job)  # others may have evicted some
        if not _is_whole(scheduler, stage, job):
            return job
        if job.req is None:
            end(scheduler, job, "complete")
    return None


def _may_go_on(scheduler: Any, stage: Stage, running_batch: Any, job: Job) -> bool:
    """Whether there is something to do, in time, that stays."""
    if not running_batch.is_empty() and _decodes(scheduler) < stage.config.decodes_between_pieces(job.mode):
        return False
    if job.req is not None and _is_whole(scheduler, stage, job):
        return False
    return _is_in_time(scheduler, stage, running_batch, job) and _fits(scheduler, running_batch, job)


def _has_time(scheduler: Any, stage: Stage) -> bool:
    """Whether nothing waits."""
    waits = scheduler.waiting_queue or scheduler.grammar_manager.grammar_queue
    return not (waits or stage.is_drafting or scheduler.chunked_req is not None)


def _decodes(scheduler: Any) -> int:
    """Decodes since the last prefill."""
    return getattr(scheduler, _DECODES, 0)


def _size(scheduler: Any, stage: Stage, running_batch: Any) -> int:
    """Of a piece; one chunk at most, less the decodes that are mixed into it."""
    chunk = min(scheduler.chunked_prefill_size or scheduler.max_prefill_tokens, scheduler.max_prefill_tokens)
    mixed = len(running_batch.reqs) if scheduler.is_mixed_chunk else 0
    return max(1, min(stage.config.backfill_tokens, chunk - mixed))


def _is_in_time(scheduler: Any, stage: Stage, running_batch: Any, job: Job) -> bool:
    """Whether the answer can still be written when its prompt is complete: pieces and tokens take turns."""
    if job.mode == "turn":
        return True
    left = job.req.sampling_params.max_new_tokens - len(job.req.output_ids)
    pieces = left // stage.config.decodes_between_pieces(job.mode)
    return len(job.ids) - job.covered <= pieces * _size(scheduler, stage, running_batch)


def _fits(scheduler: Any, running_batch: Any, job: Job) -> bool:
    """Whether the whole prompt fits beside what runs: else its first pieces would be evicted for its last."""
    if scheduler.get_num_allocatable_reqs(len(running_batch.reqs), running_batch=running_batch) <= 0:
        return False
    return free_tokens(scheduler) > len(job.ids) + reserved_tokens(scheduler, running_batch.reqs) + 2 * scheduler.page_size


def _piece(scheduler: Any, job: Job, size: int) -> Any:
    """A request that ends with the prefill of the next ids, and of which nothing is sent."""
    from specprefill_sgl.models.unsent import UnsentReq

    piece = UnsentReq(f"spec-prefill-backfill-{id(job)}", job.ids[: job.covered + size], job.namespace)
    piece.lora_id, piece.tokenizer = job.lora_id, scheduler.tokenizer  # the namespace has the LoRA's name, if there is one
    piece.finished_output = True  # so SGLang sends nothing of it
    if scheduler.enable_priority_scheduling:
        scheduler._set_or_validate_priority(piece)  # without one it gets the lowest
    setattr(piece, _PIECE, True)
    return piece


def _is_piece(req: Any) -> bool:
    return hasattr(req, _PIECE)


def end_pieces(scheduler: Any) -> None:
    """Where nothing but a piece keeps the server busy, it is waited for, between two iterations of the scheduler."""
    last = scheduler.last_batch
    running = [*scheduler.running_batch.reqs, *(last.reqs if last is not None else ())]
    if not running or not all(_is_piece(req) for req in running):
        return
    while scheduler.enable_overlap and scheduler.result_queue:
        scheduler.process_batch_result(*scheduler.result_queue.popleft())
    scheduler.last_batch = None
    scheduler.running_batch.filter_batch()
