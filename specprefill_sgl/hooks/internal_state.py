"""What the scheduler says about the stage, and how it is emptied."""

from typing import Any

from specprefill_sgl import __version__
from specprefill_sgl.hooks.setup import stage_of
from specprefill_sgl.observability.metrics import Metrics

_METRICS = "_spec_prefill_metrics"


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
        "counters": metrics_of(scheduler).as_dict(),
    }


def metrics_of(scheduler: Any) -> Metrics:
    """The scheduler's counters; made on first use, when SGLang's own collector exists."""
    metrics = getattr(scheduler, _METRICS, None)
    if metrics is None:
        collector = getattr(scheduler.metrics_reporter, "metrics_collector", None)
        metrics = Metrics(None if collector is None else dict(collector.labels))
        setattr(scheduler, _METRICS, metrics)
    return metrics
