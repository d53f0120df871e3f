"""The stage in the scheduler: requests wait in SGLang's own queue, are drafted, rewritten to their kept tokens, released."""

import contextlib
from collections.abc import Iterator
from typing import Any

from specprefill_sgl.hooks.answers import close_turns, drop_turn
from specprefill_sgl.hooks.backfill import a_piece, look_after, make_exact
from specprefill_sgl.hooks.backfill_jobs import cancel
from specprefill_sgl.hooks.decisions import decide, in_context, outcome_of, see
from specprefill_sgl.hooks.followers import follow
from specprefill_sgl.hooks.internal_state import metrics_of
from specprefill_sgl.hooks.pipeline import follows, relay
from specprefill_sgl.hooks.prediction import go_dense_where_evicted
from specprefill_sgl.hooks.revival import revive
from specprefill_sgl.hooks.setup import stage_of
from specprefill_sgl.hooks.streams import forward_stream
from specprefill_sgl.models.sizes import MAX_PROMPTS
from specprefill_sgl.request.state import state_of
from specprefill_sgl.stage.stage import Stage

_GROUP = "_spec_prefill_group"  # requests of the group in progress
_INSIDE = "_spec_prefill_inside"  # the grammar manager's mark while SGLang admits


def speculate(original: Any, scheduler: Any, prefill_delayer_single_pass: Any, running_batch: Any) -> Any:
    """AROUND Scheduler._get_new_batch_prefill_raw: one draft forward, then let SGLang admit what is decided.

    So running requests decode, and requests that need no draft are prefilled, between two forwards of a long prompt's draft.

    Requests whose draft is still to come stay in the waiting queue but are hidden from this call, so that aborts, time-outs,
    limits and metrics keep working on them; so are long prompts behind them.
    """
    if follows(scheduler):
        _admit_ready_grammars(scheduler)
        with _hidden(scheduler, follow(scheduler)):
            return original(scheduler, prefill_delayer_single_pass, running_batch)
    stage = stage_of(scheduler)
    if stage is None:
        return original(scheduler, prefill_delayer_single_pass, running_batch)
    close_turns(scheduler, stage)
    look_after(scheduler, stage)
    _admit_ready_grammars(scheduler)
    for req in scheduler.waiting_queue:
        if state_of(req) is None:
            see(scheduler, req, stage)
    back = make_exact(scheduler, stage, running_batch) or revive(scheduler, stage, running_batch)
    _draft(scheduler, stage, running_batch)
    go_dense_where_evicted(scheduler)
    # who was retracted now must not be admitted now (`hooks.readmission`)
    held = list(scheduler.waiting_queue) if back else _held(scheduler, stage)
    relay(scheduler, held)
    with a_piece(scheduler, stage, running_batch), _hidden(scheduler, held):
        return original(scheduler, prefill_delayer_single_pass, running_batch)


def forget(_result: Any, scheduler: Any, req: Any) -> None:
    """AFTER Scheduler._release_aborted_request: a request left the queue."""
    drop_turn(scheduler, req)
    cancel(scheduler, req)


def no_grammar_behind_the_stage(ready: bool, grammar_manager: Any) -> bool | None:
    """AFTER GrammarManager.has_waiting_grammars: the stage moves ready requests itself, before it looks at the queue.

    Otherwise SGLang would queue and admit such a request inside the call the stage wraps, undrafted.
    """
    return False if getattr(grammar_manager, _INSIDE, False) else None


def _admit_ready_grammars(scheduler: Any) -> None:
    manager = scheduler.grammar_manager
    if manager.has_waiting_grammars():
        for req in manager.get_ready_grammar_requests():
            scheduler._add_request_to_queue(req)


def _in_order(scheduler: Any) -> list[Any]:
    """Waiting requests in the order of admission that is fair: by priority if enabled, then by arrival."""
    if not scheduler.enable_priority_scheduling:
        return list(scheduler.waiting_queue)
    return sorted(scheduler.waiting_queue, key=lambda req: scheduler.policy.priority_sign * req.priority)


def _undecided(scheduler: Any) -> list[Any]:
    """Requests that wait for their draft, in order."""
    return [req for req in _in_order(scheduler) if outcome_of(req) is None]


def _held(scheduler: Any, stage: Stage) -> list[Any]:
    """What SGLang must not admit yet: requests that wait for their draft, and what came after the first of them.

    Only prompts of at most one chunk may overtake, so that they need not wait for drafts of long ones.
    """
    waiting = _in_order(scheduler)
    first = next((at for at, req in enumerate(waiting) if outcome_of(req) is None), len(waiting))
    return [req for req in waiting[first:] if outcome_of(req) is None or len(req.origin_input_ids) > stage.chunk_tokens]


def _may_draft(scheduler: Any, running_batch: Any, head: Any) -> bool:
    """A full batch could not take what is drafted, unless the head of the queue would preempt a running request.

    A prompt that is being prefilled in chunks is no reason to wait: a backlog of such prompts would starve the others.
    """
    if running_batch.is_empty() or not running_batch.batch_is_full:
        return True
    sign = scheduler.policy.priority_sign
    return scheduler.enable_priority_preemption and any(sign * head.priority < sign * r.priority for r in running_batch.reqs)


def _begin(scheduler: Any, stage: Stage, running_batch: Any) -> bool:
    """Form a group of the head of the queue; whether there is one. What turns out to need no draft is decided here."""
    group, prompts = [], []
    undecided = _undecided(scheduler)
    if not undecided or not _may_draft(scheduler, running_batch, undecided[0]):
        return False
    for req in undecided[:MAX_PROMPTS]:
        prompt = in_context(scheduler, req, stage, len(undecided))
        if (outcome := stage.without_reading(prompt)) is not None:
            decide(scheduler, req, outcome)
        else:
            group.append(req)
            prompts.append(prompt)
    if not prompts:
        return False
    size = stage.group_size(prompts)
    stage.begin(prompts[:size])
    setattr(scheduler, _GROUP, group[:size])
    return True


def _draft(scheduler: Any, stage: Stage, running_batch: Any) -> None:
    """One draft forward, of the group in progress or of a new one from the head of the queue."""
    if not stage.is_drafting and not _begin(scheduler, stage, running_batch):
        return
    group = getattr(scheduler, _GROUP)
    waiting = {id(req) for req in scheduler.waiting_queue}
    wanted = [id(req) in waiting for req in group]
    if not any(wanted):
        with forward_stream(scheduler):
            stage.drop()
        return
    for index in (index for index, one in enumerate(wanted) if not one):
        stage.cancel(index)
    with forward_stream(scheduler):
        outcomes = stage.advance()
    if outcomes is None:
        return
    decided = [(req, outcome) for req, outcome, one in zip(group, outcomes, wanted, strict=True) if one]
    metrics = metrics_of(scheduler)
    if outcomes[0].reason is None:  # else the group failed
        state = state_of(decided[0][0])
        assert state is not None
        metrics.drafted([outcome for _, outcome in decided], state.method)
    metrics.pool(stage.used_tokens())
    for req, outcome in decided:
        decide(scheduler, req, outcome)


@contextlib.contextmanager
def _hidden(scheduler: Any, held: list[Any]) -> Iterator[None]:
    """Hide requests, and requests that only now get their grammar, from SGLang's admission; put them back in place."""
    order = {id(req): index for index, req in enumerate(scheduler.waiting_queue)}
    hidden = {id(req) for req in held}
    scheduler.waiting_queue = [req for req in scheduler.waiting_queue if id(req) not in hidden]
    setattr(scheduler.grammar_manager, _INSIDE, True)
    try:
        yield
    finally:
        setattr(scheduler.grammar_manager, _INSIDE, False)
        if held:
            scheduler.waiting_queue = sorted([*scheduler.waiting_queue, *held], key=lambda req: order.get(id(req), len(order)))
