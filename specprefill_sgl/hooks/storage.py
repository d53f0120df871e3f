"""KV that SGLang keeps in a storage behind its host memory is looked up under the ids a request is prefilled with."""

from collections.abc import Callable
from typing import Any

from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.request.state import state_of


def prefetch(original: Callable, scheduler: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND Scheduler._prefetch_kvcache: not when a request arrives, as SGLang does, but once it is decided.

    Its admission, which may be in the same iteration, waits for what is on its way, as that of a new arrival does.
    """
    if config_of(scheduler.server_args) is not None and waits(req):
        return None
    return original(scheduler, req, *args, **kwargs)


def waits(req: Any) -> bool:
    """Whether it is not known yet what a request's ids will be."""
    state = state_of(req)
    return state is None or state.outcome is None
