"""The stage in the scheduler: requests wait in SGLang's own queue, are drafted, rewritten to their kept tokens, released."""

import contextlib
import logging
from array import array
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import torch

from specprefill_sgl import __version__, compat, skipcode
from specprefill_sgl.eligibility import ABORTED, dense_reason
from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.observability.metrics import Metrics
from specprefill_sgl.options import RequestError, RequestOptions, parse
from specprefill_sgl.ranks import Ranks
from specprefill_sgl.stage import MAX_PROMPTS, Outcome, Prompt, Stage
from specprefill_sgl.state import PromptState, attach, state_of
from specprefill_sgl.turns import Turn

logger = logging.getLogger(__name__)

_STAGE = "_spec_prefill_stage"
_GROUP = "_spec_prefill_group"  # requests of the group in progress
_METRICS = "_spec_prefill_metrics"
_TURNS = "_spec_prefill_open_turns"
_MAX_OPEN_TURNS = 1024  # a request aborted in the queue stays until 1,024 others came after it
_DEFAULT_CHUNK_TOKENS = 2048  # one draft forward where the server's own chunked prefill is off


def init_draft(_result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.maybe_init_draft_worker: draft weights and pools, before SGLang sizes the target's pool.

    Raises
    ------
    ConfigError
        If a hook did not apply or the draft cannot be loaded; the server stops.
    """
    config = config_of(scheduler.server_args)
    if config is None:
        return
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.runtime_context import get_parallel

    from specprefill_sgl.draft.model import load
    from specprefill_sgl.hooks import verify

    verify()
    draft_config = compat.draft_model_config(config, scheduler.server_args, target=scheduler.model_config)
    chunked = resolving_view(scheduler.server_args).chunked_prefill_size
    chunk_tokens = chunked if chunked and chunked > 0 else _DEFAULT_CHUNK_TOKENS
    draft = load(config, draft_config, scheduler, chunk_tokens=chunk_tokens)
    if scheduler.tp_worker.model_runner.sliding_window_size:
        logger.warning(
            "--spec-prefill: the target's sliding windows count kept tokens, so they reach further back than its own."
        )
    setattr(scheduler, _STAGE, Stage(config, draft, Ranks(get_parallel().tp_group), vocab_size=draft_config.vocab_size))


def init_attention_backend(_result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.init_all_attention_backends."""
    if (stage := stage_of(scheduler)) is not None:
        stage.draft.init_attention_backend()


def init_runner(_result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.init_all_cuda_graphs; without gradients, as SGLang's own."""
    if (stage := stage_of(scheduler)) is not None:
        with torch.no_grad():
            stage.draft.init_runner()


def stage_of(scheduler: Any) -> Stage | None:
    """The scheduler's stage, None without `--spec-prefill`."""
    return getattr(scheduler, _STAGE, None)


def speculate(original: Any, scheduler: Any, prefill_delayer_single_pass: Any, running_batch: Any) -> Any:
    """AROUND Scheduler._get_new_batch_prefill_raw: one draft forward, then let SGLang admit what is decided.

    So running requests decode, and requests that need no draft are prefilled, between two forwards of a long prompt's draft.

    Requests whose draft is still to come stay in the waiting queue but are hidden from this call, so that aborts, time-outs,
    limits and metrics keep working on them.
    """
    stage = stage_of(scheduler)
    if stage is None:
        return original(scheduler, prefill_delayer_single_pass, running_batch)
    _close_turns(scheduler)
    _admit_ready_grammars(scheduler)
    for req in scheduler.waiting_queue:
        if state_of(req) is None:
            _see(scheduler, req, stage)
    _draft(scheduler, stage, running_batch)
    with _hidden(scheduler, _undecided(scheduler)):
        return original(scheduler, prefill_delayer_single_pass, running_batch)


def no_grammar_behind_the_stage(ready: bool, grammar_manager: Any) -> bool | None:
    """AFTER GrammarManager.has_waiting_grammars: the stage moves ready requests itself, before it looks at the queue.

    Otherwise SGLang would queue and admit such a request inside the call the stage wraps, undrafted.
    """
    return False if getattr(grammar_manager, _STAGE, False) else None


def flush(flushed: bool, scheduler: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER Scheduler.flush_cache: the draft's cache too."""
    stage = stage_of(scheduler)
    if flushed and stage is not None:
        stage.clear()


def add_internal_state(result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.get_internal_state: the `spec_prefill` block of `/server_info`."""
    stage = stage_of(scheduler)
    if stage is None:
        return
    draft = stage.draft
    result.internal_state["spec_prefill"] = {
        "version": __version__,
        **{name: getattr(stage.config, name) for name in stage.config.__struct_fields__},
        "draft_max_tokens": draft.max_tokens,
        "draft_available_tokens": draft.available_tokens(),
        "draft_cached_tokens": draft.cached_tokens(),
        "draft_available_requests": draft.available_rows(),
        "draft_context_len": draft.context_len,
        "counters": _metrics(scheduler).as_dict(),
    }


def _metrics(scheduler: Any) -> Metrics:
    """The scheduler's counters; made on first use, when SGLang's own collector exists."""
    metrics = getattr(scheduler, _METRICS, None)
    if metrics is None:
        collector = getattr(scheduler.metrics_reporter, "metrics_collector", None)
        metrics = Metrics(None if collector is None else dict(collector.labels))
        setattr(scheduler, _METRICS, metrics)
    return metrics


def _admit_ready_grammars(scheduler: Any) -> None:
    manager = scheduler.grammar_manager
    if manager.has_waiting_grammars():
        for req in manager.get_ready_grammar_requests():
            scheduler._add_request_to_queue(req)


def _see(scheduler: Any, req: Any, stage: Stage) -> None:
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
        _decide(scheduler, req, outcome)


def _outcome(req: Any) -> Outcome | None:
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


def _in_context(scheduler: Any, req: Any, stage: Stage) -> Prompt:
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


def _may_draft(scheduler: Any, running_batch: Any, head: Any) -> bool:
    """A full batch could not take what is drafted, unless the head of the queue would preempt a running request.

    A prompt that is being prefilled in chunks is no reason to wait: a backlog of such prompts would starve the others.
    """
    if running_batch.is_empty() or not running_batch.batch_is_full:
        return True
    sign = scheduler.policy.priority_sign
    return scheduler.enable_priority_preemption and any(sign * head.priority < sign * r.priority for r in running_batch.reqs)


def _undecided(scheduler: Any) -> list[Any]:
    """Requests that wait for their draft, in the order SGLang will admit them: by priority if enabled, then by arrival."""
    waiting = [req for req in scheduler.waiting_queue if _outcome(req) is None]
    if scheduler.enable_priority_scheduling:
        waiting.sort(key=lambda req: scheduler.policy.priority_sign * req.priority)
    return waiting


def _begin(scheduler: Any, stage: Stage, running_batch: Any) -> bool:
    """Form a group of the head of the queue; whether there is one. What turns out to need no draft is decided here."""
    group, prompts = [], []
    undecided = _undecided(scheduler)
    if not undecided or not _may_draft(scheduler, running_batch, undecided[0]):
        return False
    for req in undecided[:MAX_PROMPTS]:
        prompt = _in_context(scheduler, req, stage)
        if (outcome := stage.without_draft(prompt)) is not None:
            _decide(scheduler, req, outcome)
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
        stage.drop()
        return
    for index in (index for index, one in enumerate(wanted) if not one):
        stage.cancel(index)
    with _forward_stream(scheduler):
        outcomes = stage.advance()
    if outcomes is None:
        return
    metrics = _metrics(scheduler)
    metrics.drafted(outcomes, sum(len(req.origin_input_ids) for req in group))
    metrics.pool(stage.draft.max_tokens - stage.draft.free_tokens())
    for req, outcome, one in zip(group, outcomes, wanted, strict=True):
        if one:
            _decide(scheduler, req, outcome)


def _decide(scheduler: Any, req: Any, outcome: Outcome) -> None:
    """Record the outcome and, if tokens are dropped, make the request's prompt the skip-coded kept tokens."""
    state = state_of(req)
    assert state is not None
    if state.prompt_tokens != len(req.origin_input_ids):  # an abort replaced the prompt while it was drafted
        outcome = Outcome(positions=None, reason=ABORTED)
    state.decide(outcome)
    _metrics(scheduler).decided(outcome, state.prompt_tokens)
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


def _close_turns(scheduler: Any) -> None:
    """Give answers that became final to their turns, so that turns outlive requests without holding them."""
    turns = _open_turns(scheduler)
    for _ in range(len(turns)):
        req, turn = turns.popleft()
        if not req.finished():
            turns.append((req, turn))
        elif req.finished_reason.to_json()["type"] != "abort":
            turn.answer = array("q", req.output_ids)


@contextlib.contextmanager
def _forward_stream(scheduler: Any) -> Iterator[None]:
    """The stream forwards run on: runners share input buffers and workspaces, so drafts must not overlap with them."""
    if not scheduler.enable_overlap:
        yield
        return
    with scheduler.forward_stream_ctx:
        scheduler.forward_stream.wait_stream(scheduler.schedule_stream)
        yield


@contextlib.contextmanager
def _hidden(scheduler: Any, held: list[Any]) -> Iterator[None]:
    """Hide requests, and requests that only now get their grammar, from SGLang's admission; put them back in place."""
    order = {id(req): index for index, req in enumerate(scheduler.waiting_queue)}
    hidden = {id(req) for req in held}
    scheduler.waiting_queue = [req for req in scheduler.waiting_queue if id(req) not in hidden]
    setattr(scheduler.grammar_manager, _STAGE, True)
    try:
        yield
    finally:
        setattr(scheduler.grammar_manager, _STAGE, False)
        if held:
            scheduler.waiting_queue = sorted([*scheduler.waiting_queue, *held], key=lambda req: order.get(id(req), len(order)))
