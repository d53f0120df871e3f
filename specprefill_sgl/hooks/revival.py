"""Dropped tokens return while the answer is written: it is read by the method, and what it asks for is prefilled after all.

A request whose prompt changes goes back to the queue (`hooks.readmission`). The radix cache has what it kept, so that only what
returned, the prompt's last token and the answer so far are computed.
"""

from array import array
from typing import Any

import msgspec
import numpy as np

from specprefill_sgl.hooks.answers import open_turns
from specprefill_sgl.hooks.decisions import code, prompt_of
from specprefill_sgl.hooks.internal_state import metrics_of
from specprefill_sgl.hooks.readmission import (
    comes_first,
    has_room,
    has_spoken,
    may_go_back,
    others_return,
    queue_room,
    retract,
    wait_again,
)
from specprefill_sgl.hooks.streams import forward_stream
from specprefill_sgl.models.sizes import MAX_PROMPTS
from specprefill_sgl.request.options import given
from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.request.state import PromptState, sparse_state_of
from specprefill_sgl.request.turns import Turn
from specprefill_sgl.selection.budget import affordable_return
from specprefill_sgl.selection.rule import MAX_WINDOW
from specprefill_sgl.stage.reconsidering import Reconsidered
from specprefill_sgl.stage.stage import Stage

NEVER = 2**62


def revive(scheduler: Any, stage: Stage, running_batch: Any) -> list[Any]:
    """Ask the answers that are due what they lack; the requests that were retracted for it, which wait in the queue.

    One group of prompts at a time: while another is drafted, answers wait.
    """
    most = min(MAX_PROMPTS, queue_room(scheduler.max_queued_requests, len(scheduler.waiting_queue)))
    if not stage.may_revive or stage.is_drafting or not most or others_return(scheduler):
        return []
    due = [req for req in running_batch.reqs if _is_due(req, stage) and comes_first(scheduler, req)]
    due.sort(key=lambda req: _asked(_state(req)) - len(req.output_ids))  # whoever waits longest
    turns = {id(req): turn for req, turn in open_turns(scheduler)} if due else {}
    asked: list[Any] = []
    prompts: list[Prompt] = []
    returning: list[tuple[Any, int]] = []
    for req in due:
        if id(req) not in turns:
            continue
        more = _may_return(_state(req), stage) * _state(req).rule.chunk_size
        if len(asked) == most or not has_room(scheduler, running_batch, [*returning, (req, more)]):
            break
        prompt = _continued(req, turns[id(req)], stage)
        if stage.methods[prompt.method].refuses(prompt) is not None:  # the answer has outgrown the reader
            _state(req).pause = NEVER
            continue
        asked.append(req)
        prompts.append(prompt)
        returning.append((req, more))
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
            retract(running_batch, req)
            _replace(scheduler, stage, req, turns[id(req)], one.positions)
            wait_again(scheduler, req, place=len(back))
            back.append(req)
    return back


def _setting(state: PromptState, stage: Stage, name: str) -> int:
    return given(getattr(state.options, name), getattr(stage.config, name))


def _may_return(state: PromptState, stage: Stage) -> int:
    """How many chunks, at this time."""
    most = _setting(state, stage, "revive_chunks")
    if state.prompt_tokens <= stage.window or not stage.window:  # the whole prompt lies in the window, whatever returns
        return most
    returned = sum(tokens for _, tokens in state.revived)
    return min(most, affordable_return(stage.window, returned, chunk_size=state.rule.chunk_size))


def _asked(state: PromptState) -> int:
    return state.asked[-1] if state.asked else 0


def _state(req: Any) -> PromptState:
    state = sparse_state_of(req)
    assert state is not None
    return state


def _is_due(req: Any, stage: Stage) -> bool:
    """Whether the answer is long enough since it was last asked, and will go on."""
    state = sparse_state_of(req)
    if state is None or state.reading is not None or state.predicted or not may_go_back(req):
        return False
    every, said = _setting(state, stage, "revive_every"), len(req.output_ids)
    if not every or len(state.revived) >= _setting(state, stage, "revive_max") or not _may_return(state, stage):
        return False
    return has_spoken(req) and said - _asked(state) >= (state.pause or every)


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
        most_revived=_may_return(state, stage),
        return_votes=False,
    )


def _wait(state: PromptState, stage: Stage, said: int, one: Reconsidered) -> None:
    """Longer and longer while nothing is lacking; for ever where the reader has lost the prompt."""
    every = _setting(state, stage, "revive_every")
    if one.outcome != "evicted":
        state.asked.append(said)
    pauses = {"revived": every, "nothing": 2 * (state.pause or every), "evicted": NEVER}
    state.pause = pauses[one.outcome]


def _replace(scheduler: Any, stage: Stage, req: Any, turn: Turn, positions: np.ndarray) -> None:
    """Other coded ids, and another turn for what may continue this one."""
    state = _state(req)
    state.revive(positions, len(req.output_ids))
    code(req, turn.ids, positions)
    revived = stage.turns.add(turn.revived(positions))
    turns = open_turns(scheduler)
    turns[:] = [(one, revived if one is req else own) for one, own in turns]
    if turn.is_revived and not any(own is turn for _, own in turns):
        stage.turns.discard(turn)  # of an earlier return: nothing will continue it
