"""One request in the scheduler: its options and context, and what is decided on it."""

from array import array
from collections import deque
from typing import Any

import msgspec
import numpy as np

from specprefill_sgl import skipcode
from specprefill_sgl.eligibility import ABORTED, dense_reason
from specprefill_sgl.hooks.internal_state import metrics_of
from specprefill_sgl.hooks.setup import stage_of
from specprefill_sgl.options import RequestError, RequestOptions, parse
from specprefill_sgl.prompts import Outcome, Prompt
from specprefill_sgl.stage import Stage
from specprefill_sgl.state import PromptState, attach, state_of
from specprefill_sgl.turns import Turn

_TURNS = "_spec_prefill_open_turns"
_MAX_OPEN_TURNS = 1024  # a request aborted in the queue stays until 1,024 others came after it


def see(scheduler: Any, req: Any, stage: Stage) -> None:
    """First sight of a request: read its options; decide at once where no draft is needed or possible."""
    try:
        options = parse(req.sampling_params.custom_params)
    except RequestError as error:  # from a front end that does not check requests as SGLang's own does
        req.set_finish_with_abort(str(error))
        options = RequestOptions()
    state = PromptState(options, len(req.origin_input_ids))
    attach(req, state)
    reason = dense_reason(req, options, stage.config)
    outcome = stage.without_draft(_prompt(req, stage)) if reason is None else Outcome(positions=None, reason=reason)
    if outcome is not None:
        decide(scheduler, req, outcome)


def outcome_of(req: Any) -> Outcome | None:
    """What was decided on a request, None as long as nothing is."""
    state = state_of(req)
    return None if state is None else state.outcome


def _prompt(req: Any, stage: Stage) -> Prompt:
    options = state_of(req).options  # type: ignore[union-attr]
    return Prompt(
        ids=req.origin_input_ids,
        keep_ratio=stage.config.keep_ratio if options.keep_ratio is None else options.keep_ratio,
        min_tokens=stage.config.min_tokens if options.min_tokens is None else options.min_tokens,
        protect=options.protect,
    )


def in_context(scheduler: Any, req: Any, stage: Stage) -> Prompt:
    """The prompt with what earlier requests left: an earlier turn of it, or an undropped prefix in the radix cache."""
    prompt = _prompt(req, stage)
    if (earlier := stage.turns.continued(prompt.ids)) is not None:
        turn, end = earlier
        return msgspec.structs.replace(prompt, kept=np.concatenate([turn.positions, np.arange(len(turn.ids), end)]))
    return msgspec.structs.replace(prompt, cached=_cached(scheduler, req))


def _cached(scheduler: Any, req: Any) -> int:
    """Leading prompt tokens that SGLang's radix cache holds, undropped: plain ids match plain ids only."""
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    key = RadixKey(req.origin_input_ids, req.extra_key, limit=len(req.origin_input_ids) - 1, cache_salt=req.cache_salt)
    return scheduler.tree_cache.match_prefix(MatchPrefixParams(key=key)).device_prefix_len


def decide(scheduler: Any, req: Any, outcome: Outcome) -> None:
    """Record the outcome and, if tokens are dropped, make the request's prompt the skip-coded kept tokens."""
    state = state_of(req)
    assert state is not None
    if state.prompt_tokens != len(req.origin_input_ids):  # an abort replaced the prompt while it was drafted
        outcome = Outcome(positions=None, reason=ABORTED)
    state.decide(outcome)
    metrics_of(scheduler).decided(outcome, state.prompt_tokens)
    if not state.is_sparse:
        return
    assert outcome.positions is not None
    stage = stage_of(scheduler)
    assert stage is not None
    _open_turns(scheduler).append((req, stage.remember(_prompt(req, stage), outcome.positions)))
    coded = skipcode.encode(req.origin_input_ids, outcome.positions)
    if req.logprob_start_len >= 0:  # output logprobs only: it was the prompt's length
        req.logprob_start_len = len(coded)
    req.origin_input_ids = coded
    req.full_untruncated_fill_ids = array("q")


def _open_turns(scheduler: Any) -> deque[tuple[Any, Turn]]:
    """Sparse requests whose answers are not final, with their turns."""
    turns = getattr(scheduler, _TURNS, None)
    if turns is None:
        turns = deque(maxlen=_MAX_OPEN_TURNS)
        setattr(scheduler, _TURNS, turns)
    return turns


def close_turns(scheduler: Any) -> None:
    """Give answers that became final to their turns, so that turns outlive requests without holding them."""
    turns = _open_turns(scheduler)
    for _ in range(len(turns)):
        req, turn = turns.popleft()
        if not req.finished():
            turns.append((req, turn))
        elif req.finished_reason.to_json()["type"] != "abort":
            turn.answer = array("q", req.output_ids)
