"""A later pipeline stage: it does to its queue what the first stage did to its own, and knows no draft."""

from typing import Any

from specprefill_sgl.hooks.decisions import cached_tokens, code
from specprefill_sgl.hooks.pipeline import Decided, Event, Looked, Seen, receive
from specprefill_sgl.request import skipcode
from specprefill_sgl.request.reading import unpack
from specprefill_sgl.request.state import attach, state_of


def follow(scheduler: Any) -> list[Any]:
    """Repeat the first stage's iteration; the requests that wait on."""
    events, held = receive(scheduler)
    waiting = {req.rid: req for req in scheduler.waiting_queue}
    for event in events:
        _repeat(scheduler, waiting[event.rid], event)
    return [waiting[rid] for rid in held]


def _repeat(scheduler: Any, req: Any, event: Event) -> None:
    match event:
        case Seen():
            if event.error is not None:
                req.set_finish_with_abort(event.error)
            req.sampling_params.custom_params, _ = unpack(req.sampling_params.custom_params)
            attach(req, event.state)
        case Looked():
            ids = req.origin_input_ids
            ids = ids if event.positions is None else skipcode.encode(ids, event.positions)
            cached_tokens(scheduler, ids, (req.extra_key, req.cache_salt))
        case Decided():
            state = state_of(req)
            assert state is not None
            state.decide(event.outcome)
            if state.is_sparse:
                code(req, req.origin_input_ids, state.kept)
            scheduler._prefetch_kvcache(req)
