"""Dropped tokens return while the answer is written: it is read by the method, and what it asks for is prefilled after all.

A request whose prompt changes goes through SGLang's own retraction: its slots are released, it waits in front of the queue, and
is prefilled again. The radix cache has what it kept, so that only what returned, the prompt's last token and the answer so far
are computed.

One iteration lies between the two. Under the overlap schedule a decode of the old prompt is in flight when a request is
retracted; SGLang drops its token only while the request is marked as retracted, which its re-admission ends. So a request is
hidden from the admission of the same iteration; the token is sampled again, after what returned. So is all that waits, or
another request would take its place.
"""

from array import array
from typing import Any

import msgspec
import numpy as np

from specprefill_sgl.hooks.answers import open_turns
from specprefill_sgl.hooks.decisions import code, prompt_of
from specprefill_sgl.hooks.internal_state import metrics_of
from specprefill_sgl.hooks.streams import forward_stream
from specprefill_sgl.models.sizes import MAX_PROMPTS
from specprefill_sgl.request.options import given
from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.request.state import PromptState, sparse_state_of
from specprefill_sgl.request.turns import Turn
from specprefill_sgl.selection.rule import MAX_WINDOW
from specprefill_sgl.stage.stage import Reconsidered, Stage

NEVER = 2**62
_CLIP = 4096  # what SGLang reserves at most for a request's tokens to come
_SETTINGS = ("revived",)  # of remembered turns: the same prompt again is selected from as it was at first


def revive(scheduler: Any, stage: Stage, running_batch: Any) -> list[Any]:
    """Ask the answers that are due what they lack; the requests that were retracted for it, which wait in the queue.

    One group of prompts at a time: while another is drafted, answers wait.
    """
    if not stage.may_revive or stage.is_drafting or not _has_queue(scheduler):
        return []
    if any(req.is_retracted for req in scheduler.waiting_queue):  # they return first, or the queue would stay hidden
        return []
    due = [req for req in running_batch.reqs if _is_due(req, stage)]
    due.sort(key=lambda req: _asked(_state(req)) - len(req.output_ids))  # whoever waits longest
    turns = {id(req): turn for req, turn in open_turns(scheduler)} if due else {}
    asked: list[Any] = []
    prompts: list[Prompt] = []
    for req in due:
        if len(asked) < MAX_PROMPTS and id(req) in turns:
            prompt = _continued(req, turns[id(req)], stage)
            if stage.methods[prompt.method].refuses(prompt) is not None:  # the answer has outgrown the reader
                _state(req).pause = NEVER
            elif _has_room(scheduler, running_batch, prompt.most_revived * prompt.rule.chunk_size):
                asked.append(req)
                prompts.append(prompt)
    if not asked:
        return []
    size = stage.group_size(prompts)
    with forward_stream(scheduler):
        found = stage.reconsider(prompts[:size])
    back: list[Any] = []
    for req, one in zip(asked, found, strict=False):
        state = _state(req)
        _wait(state, stage, len(req.output_ids), one)
        metrics_of(scheduler).reconsidered(one.outcome, 0 if one.positions is None else len(one.positions) - len(state.kept))
        if one.positions is not None:
            _retract(scheduler, running_batch, req, place=len(back))
            _replace(scheduler, stage, req, turns[id(req)], one.positions)
            back.append(req)
    return back


def _setting(state: PromptState, stage: Stage, name: str) -> int:
    return given(getattr(state.options, name), getattr(stage.config, name))


def _asked(state: PromptState) -> int:
    return state.asked[-1] if state.asked else 0


def _state(req: Any) -> PromptState:
    state = sparse_state_of(req)
    assert state is not None
    return state


def _is_due(req: Any, stage: Stage) -> bool:
    """Whether the answer is long enough since it was last asked, and will go on.

    Not where SGLang counts from its beginning what a retraction makes it forget: penalties, and tokens before it may end.
    """
    state = sparse_state_of(req)
    if state is None or state.reading is not None or req.finished() or req.to_finish is not None:
        return False
    every, said, params = _setting(state, stage, "revive_every"), len(req.output_ids), req.sampling_params
    if not every or len(state.revived) >= _setting(state, stage, "revive_max"):
        return False
    if params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1 or params.min_new_tokens:
        return False
    if req.retraction_count != state.retractions:  # its prefill may be in flight
        state.retractions, state.said_then = req.retraction_count, said
    goes_on = params.max_new_tokens - said > 2  # one may be in flight
    return goes_on and said > state.said_then and said - _asked(state) >= (state.pause or every)


def _continued(req: Any, turn: Turn, stage: Stage) -> Prompt:
    """The prompt with its answer so far; of that vote the tokens that were not asked before."""
    state, said = _state(req), array("q", req.output_ids)
    prompt = prompt_of(req, stage, turn.ids)
    return msgspec.structs.replace(
        prompt,
        rule=msgspec.structs.replace(prompt.rule, lookahead=1, window=1, window_votes="pooled"),
        kept=state.kept,
        answer=said,
        fresh=min(len(said) - _asked(state), MAX_WINDOW),
        most_revived=_setting(state, stage, "revive_chunks"),
        return_votes=False,
    )


def _wait(state: PromptState, stage: Stage, said: int, one: Reconsidered) -> None:
    """Longer and longer while nothing is lacking; for ever where the reader has lost the prompt."""
    every = _setting(state, stage, "revive_every")
    if one.outcome != "evicted":
        state.asked.append(said)
    pauses = {"revived": every, "nothing": 2 * (state.pause or every), "evicted": NEVER}
    state.pause = pauses[one.outcome]


def _has_queue(scheduler: Any) -> bool:
    limit = scheduler.max_queued_requests
    return limit is None or len(scheduler.waiting_queue) + MAX_PROMPTS <= limit


def _has_room(scheduler: Any, running_batch: Any, revived: int) -> bool:
    """Whether a request with so many tokens more comes back at once: SGLang reserves what running requests may say yet."""
    left = sum(min(max(req.sampling_params.max_new_tokens - len(req.output_ids), 0), _CLIP) for req in running_batch.reqs)
    free = scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size()
    return free >= revived + left * scheduler.new_token_ratio_tracker.current + 2 * scheduler.page_size


def _retract(scheduler: Any, running_batch: Any, req: Any, place: int) -> None:
    """As SGLang does when its pool is full, to this place in the queue."""
    index = next(at for at, one in enumerate(running_batch.reqs) if one is req)
    running_batch.release_req(index, 0)
    running_batch.filter_batch(keep_indices=[at for at in range(len(running_batch.reqs)) if at != index])
    running_batch.batch_is_full = False
    scheduler._add_request_to_queue(req, is_retracted=True)
    queue = scheduler.waiting_queue
    queue.insert(place, queue.pop())
    _state(req).retractions = req.retraction_count


def _replace(scheduler: Any, stage: Stage, req: Any, turn: Turn, positions: np.ndarray) -> None:
    """Other coded ids, and another turn for what may continue this one."""
    state = _state(req)
    state.revive(positions, len(req.output_ids))
    code(req, turn.ids, positions)
    revived = Turn(ids=turn.ids, positions=positions, settings=_SETTINGS, namespace=turn.namespace)
    turns = open_turns(scheduler)
    turns[:] = [(one, stage.turns.add(revived) if one is req else own) for one, own in turns]
