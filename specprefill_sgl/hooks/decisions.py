"""One request in the scheduler: its options and context, and what is decided on it."""

from array import array
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from specprefill_sgl.hooks.answers import open_turns
from specprefill_sgl.hooks.backfill_jobs import plan
from specprefill_sgl.hooks.internal_state import metrics_of
from specprefill_sgl.hooks.pipeline import Decided, Looked, Seen, tell
from specprefill_sgl.hooks.prefill_side import announce
from specprefill_sgl.hooks.setup import stage_of
from specprefill_sgl.hooks.usable import check_usable
from specprefill_sgl.request import backlog, skipcode
from specprefill_sgl.request.eligibility import ABORTED, dense_reason, is_text
from specprefill_sgl.request.options import RequestError, RequestOptions, given, parse
from specprefill_sgl.request.prompts import Outcome, Prompt
from specprefill_sgl.request.reading import unpack
from specprefill_sgl.request.state import PromptState, attach, state_of
from specprefill_sgl.selection.budget import WINDOW_PART, affordable_tail
from specprefill_sgl.selection.rule import TAIL_PART
from specprefill_sgl.stage.stage import Stage


def see(scheduler: Any, req: Any, stage: Stage) -> None:
    """First sight of a request: read its options; decide at once where no draft is needed or possible."""
    custom, reading = unpack(req.sampling_params.custom_params)
    wrong = None
    try:
        options = parse(custom, methods=stage.config.method)
        check_usable(options, stage.config, scheduler.server_args)
    except RequestError as error:  # from a front end that does not check requests as SGLang's own does
        wrong, options = str(error), RequestOptions()
        req.set_finish_with_abort(wrong)
    if reading is not None:
        req.sampling_params.custom_params = custom  # it is kept once
    stage.may_revive |= bool(options.revive_every)
    if reading is not None and len(reading.first) != len(req.origin_input_ids):  # SGLang cut the prompt after it was read
        reading = None
    method, keep = options.method_of(stage.config), backlog.keep(options, stage.config, waiting=1)
    rule = stage.methods[method].adapted(options.rule(stage.config))
    state = PromptState(options, len(req.origin_input_ids), rule, keep, method, reading)
    attach(req, state)
    tell(scheduler, Seen(req.rid, replace(state, reading=None), wrong))
    reason = dense_reason(req, options, stage.config)
    outcome = stage.without_reading(prompt_of(req, stage)) if reason is None else Outcome(positions=None, reason=reason)
    if outcome is not None and not (outcome.is_whole(len(req.origin_input_ids)) and backlog.may_fall(options, stage.config)):
        decide(scheduler, req, outcome)


def outcome_of(req: Any) -> Outcome | None:
    """What was decided on a request, None as long as nothing is."""
    state = state_of(req)
    return None if state is None else state.outcome


def prompt_of(req: Any, stage: Stage, ids: array | None = None) -> Prompt:
    """A request's prompt; of a sparse one, whose ids are coded, `ids` are those it arrived with."""
    state, config = state_of(req), stage.config
    assert state is not None
    ids = req.origin_input_ids if ids is None else ids
    options, rule, keep_ratio = state.options, state.rule, state.keep.ratio
    tail = max(
        affordable_tail(len(ids), wanted, part=part, chunk_size=rule.chunk_size, keep_ratio=keep_ratio, unit=rule.budget_unit)
        for wanted, part in ((rule.keep_last, TAIL_PART), (stage.window, WINDOW_PART))
    )
    return Prompt(
        ids=ids,
        keep_ratio=keep_ratio,
        rule=rule,
        method=state.method,
        min_tokens=given(options.min_tokens, config.min_tokens),
        protect=options.protect if state.reading is None else (*options.protect, *state.reading.unread),
        keep_first=config.keep_first,
        keep_last=given(options.keep_last, config.keep_last, tail),
        namespace=(req.extra_key, req.cache_salt),
        return_votes=options.return_votes,
        reading=state.reading,
    )


def in_context(scheduler: Any, req: Any, stage: Stage, waiting: int) -> Prompt:
    """The prompt with what earlier requests left in the radix cache: an earlier turn of it, or an undropped prefix.

    Of so many requests that wait, it keeps what `backlog.keep` says.

    What the cache lost of the earlier turn is selected from again. What is never cached stays, since it ends the answer.
    """
    state = state_of(req)
    assert state is not None
    state.keep = backlog.keep(state.options, stage.config, waiting)
    prompt = prompt_of(req, stage)
    tell(scheduler, Looked(req.rid, None))
    cached = cached_tokens(scheduler, prompt.ids, prompt.namespace)  # plain ids match undropped prefixes only
    _, end = stage.whole_turns.continued(prompt.ids, prompt.namespace) or (None, 0)
    lost = never_cached(scheduler, stage)
    if cached >= end - lost:
        cached = max(cached, end)
    turn, end = stage.turns.continued(prompt.ids, prompt.namespace) or (None, 0)
    if turn is None or cached >= end:
        return msgspec.structs.replace(prompt, cached=cached)
    kept = np.concatenate([turn.positions, np.arange(len(turn.ids), end)])
    tell(scheduler, Looked(req.rid, kept))
    hit = cached_tokens(scheduler, skipcode.encode(prompt.ids, kept), prompt.namespace)
    is_there = hit >= len(kept) - lost
    if hit < cached or (hit == cached and not is_there):
        return msgspec.structs.replace(prompt, cached=cached)
    return msgspec.structs.replace(prompt, kept=kept if is_there else kept[:hit], cached=hit)


def cached_tokens(scheduler: Any, ids: array, namespace: tuple) -> int:
    """Leading ids, plain or coded, that SGLang's radix cache holds; never the last one of all.

    What lies in host memory counts: SGLang loads it back before it prefills the rest.
    """
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    extra_key, cache_salt = namespace
    key = RadixKey(ids, extra_key, limit=len(ids) - 1, cache_salt=cache_salt)
    found = scheduler.tree_cache.match_prefix(MatchPrefixParams(key=key))
    return found.device_prefix_len + found.host_hit_length


def never_cached(scheduler: Any, stage: Stage) -> int:
    """Tokens at the end of a finished request that no cache holds: the last one, a part of a page, what follows the last
    snapshot; and where keys are pairs of tokens (EAGLE), the one that ends no pair.
    """
    return max(scheduler.page_size, stage.after_snapshot, 1) + scheduler.spec_algorithm.is_eagle()


def decide(scheduler: Any, req: Any, outcome: Outcome) -> None:
    """Record the outcome and, if tokens are dropped, make the request's prompt the skip-coded kept tokens.

    Then SGLang may look for its KV in a storage (`hooks.storage`).
    """
    _record(scheduler, req, outcome)
    scheduler._prefetch_kvcache(req)


def _record(scheduler: Any, req: Any, outcome: Outcome) -> None:
    state = state_of(req)
    assert state is not None
    if state.prompt_tokens != len(req.origin_input_ids):  # an abort replaced the prompt while it was drafted
        outcome = Outcome(positions=None, reason=ABORTED)
    state.decide(outcome)
    tell(scheduler, Decided(req.rid, Outcome(positions=outcome.positions, reason=outcome.reason)))
    if outcome.inside:
        req.skip_radix_cache_insert = True  # its ids do not determine its KV
        return
    metrics_of(scheduler).decided(outcome, state.prompt_tokens, state.method)
    if not state.is_sparse:
        if outcome.reason != ABORTED and is_text(req) and (stage := _stage(scheduler)).after_snapshot:
            # the cache does not tell where the answer ends
            open_turns(scheduler).append((req, stage.remember_whole(prompt_of(req, stage))))
        return
    assert outcome.positions is not None
    if state.predicted:
        replace_ids(req, skipcode.encode(req.origin_input_ids, outcome.positions, state.predicted))
        return
    stage = _stage(scheduler)
    open_turns(scheduler).append((req, stage.remember(prompt_of(req, stage), outcome)))
    plan(scheduler, req, stage)
    code(req, req.origin_input_ids, outcome.positions)
    announce(scheduler, req)


def code(req: Any, ids: array, positions: np.ndarray) -> None:
    """Make the request's prompt the skip-coded tokens at these positions of the ids it arrived with."""
    replace_ids(req, skipcode.encode(ids, positions))


def replace_ids(req: Any, ids: array) -> None:
    """Make these the request's prompt."""
    if req.logprob_start_len >= 0:  # output logprobs only: it was the prompt's length
        req.logprob_start_len = len(ids)
    req.origin_input_ids = ids
    req.full_untruncated_fill_ids = array("q")


def _stage(scheduler: Any) -> Stage:
    stage = stage_of(scheduler)
    assert stage is not None
    return stage
