"""Predicted KV that a waiting request counts on: it lies in the radix cache, where it may be evicted like any other.

Nothing is locked, so that what waits never holds what runs. Instead each is looked for just before SGLang admits; between that
look and admission nothing is evicted. A request whose prefix is not whole any more, also one that was retracted, is prefilled
as it arrived: SGLang would compute what is missing under ids that say it was predicted.
"""

from typing import Any

from specprefill_sgl.hooks.decisions import cached_tokens, replace_ids
from specprefill_sgl.hooks.setup import stage_of
from specprefill_sgl.request.eligibility import PREDICTION_EVICTED
from specprefill_sgl.request.skipcode import plain
from specprefill_sgl.request.state import sparse_state_of


def go_dense_where_evicted(scheduler: Any) -> None:
    """Of the requests that wait."""
    for req in scheduler.waiting_queue:
        state = sparse_state_of(req)
        if state is None or not state.predicted:
            continue
        if cached_tokens(scheduler, req.origin_input_ids, (req.extra_key, req.cache_salt)) < state.predicted:
            state.go_dense(PREDICTION_EVICTED)
            replace_ids(req, plain(req.origin_input_ids))


def outdate(_result: Any, updater: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER updates of the target's weights: what was trained for others does not follow."""
    stage = stage_of(updater.scheduler)
    for method in {} if stage is None else stage.methods.values():
        if (changed := getattr(method, "weights_changed", None)) is not None:
            changed()
