"""What the scheduler says about the stage."""

from typing import Any

from specprefill_sgl import __version__
from specprefill_sgl.hooks.answers import close_turns, open_turns
from specprefill_sgl.hooks.attachment import attached
from specprefill_sgl.hooks.setup import stage_of
from specprefill_sgl.observability.metrics import Metrics
from specprefill_sgl.selection.rule import CHANGEABLE
from specprefill_sgl.stage.stage import Stage

_METRICS = "_spec_prefill_metrics"


def add_internal_state(result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.get_internal_state: the `spec_prefill` block of `/server_info`."""
    stage = stage_of(scheduler)
    if stage is None:
        return
    close_turns(scheduler, stage)
    result.internal_state["spec_prefill"] = {
        "version": __version__,
        "attached": attached(),
        **{name: getattr(stage.config, name) for name in stage.config.__struct_fields__},
        **{name: getattr(stage.config.rule, name) for name in CHANGEABLE},
        **_usage(stage),
        "remembered_turns": len(stage.turns),
        "unanswered_turns": len(open_turns(scheduler)),
        "counters": metrics_of(scheduler).as_dict(),
    }


def _usage(stage: Stage) -> dict[str, int]:
    """What every method holds; the names begin with the method's."""
    usages = ((name.replace("-", "_"), method.usage()) for name, method in stage.methods.items())
    return {f"{name}_{key}": value for name, usage in usages for key, value in usage.items()}


def metrics_of(scheduler: Any) -> Metrics:
    """The scheduler's counters; made on first use, when SGLang's collector exists. Exported where that one is."""
    metrics = getattr(scheduler, _METRICS, None)
    if metrics is None:
        reporter = scheduler.metrics_reporter
        exported = reporter.current_scheduler_metrics_enabled  # of the tensor-parallel ranks, the first
        metrics = Metrics(dict(reporter.metrics_collector.labels) if exported else None)
        setattr(scheduler, _METRICS, metrics)
    return metrics
