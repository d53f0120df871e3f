"""Emptying caches: the draft's with SGLang's, and no work of our own in the way of it."""

from collections.abc import Callable
from typing import Any

from specprefill_sgl.hooks.backfill import end_pieces
from specprefill_sgl.hooks.backfill_jobs import cancel
from specprefill_sgl.hooks.internal_state import metrics_of
from specprefill_sgl.hooks.setup import stage_of
from specprefill_sgl.hooks.streams import forward_stream


def flush(original: Callable[..., bool], scheduler: Any, *args: Any, **kwargs: Any) -> bool:
    """AROUND Scheduler.flush_cache: the draft's cache too.

    SGLang flushes an idle server only, before it changes weights too; what is prefilled for later makes no server busy.
    """
    stage = stage_of(scheduler)
    if stage is None:
        return original(scheduler, *args, **kwargs)
    end_pieces(scheduler)
    flushed = original(scheduler, *args, **kwargs)
    if flushed:
        cancel(scheduler)
        with forward_stream(scheduler):
            stage.clear()
        metrics_of(scheduler).pool(0)
    return flushed
