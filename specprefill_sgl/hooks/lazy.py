"""The method lazy around the target's own forward: on one server's objects, so that without the method nobody pays for it."""

from typing import Any

from specprefill_sgl.hooks.decisions import prompt_of
from specprefill_sgl.hooks.internal_state import metrics_of
from specprefill_sgl.hooks.setup import stage_of
from specprefill_sgl.methods.lazy.method import Lazy
from specprefill_sgl.methods.lazy.seats import Pruned, Seat, admitted
from specprefill_sgl.request.options import given
from specprefill_sgl.request.state import state_of
from specprefill_sgl.stage.selecting import select
from specprefill_sgl.stage.stage import Stage

_ATTRIBUTE = "spec_prefill_pruned"


def lazy_of(stage: Stage | None) -> Lazy | None:
    """The method, if it is loaded."""
    methods = () if stage is None else stage.methods.values()
    return next((method for method in methods if isinstance(method, Lazy)), None)


def install(scheduler: Any, stage: Stage, lazy: Lazy) -> None:
    """Stand around the target's forward: its batches with lazy requests are run part by part."""
    worker, runner = scheduler.tp_worker, scheduler.tp_worker.model_runner
    waiting: list[Seat | None] = []  # of the batch whose forward comes next

    def on_pruned(seat: Seat, index: int, **said: Any) -> None:
        seat.state.prune(lazy.layers[index - 1], seat.pruned.kept[index], **said)
        if index == lazy.stages and not seat.pruned.is_read:
            assert seat.state.outcome is not None
            metrics_of(scheduler).decided(seat.state.outcome, seat.prompt_tokens, seat.state.method)

    def on_asked(returned: int) -> None:
        metrics_of(scheduler).reconsidered("revived" if returned else "nothing", returned)

    parts = lazy.forward(select, on_pruned, on_asked)
    generate, forward = worker.forward_batch_generation, runner.forward

    def forward_batch_generation(batch: Any, *args: Any, **kwargs: Any) -> Any:
        waiting[:] = _seats(scheduler, stage, lazy, batch)
        try:
            return generate(batch, *args, **kwargs)
        finally:
            waiting.clear()

    def forward_in_parts(batch: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(waiting):
            return forward(batch, *args, **kwargs)
        seats, more = list(waiting), batch.batch_size - len(waiting)  # beam search adds rows at the end
        waiting.clear()
        return (parts.extend if batch.forward_mode.is_extend() else parts.decode)(batch, [*seats, *[None] * more])

    worker.forward_batch_generation, runner.forward = forward_batch_generation, forward_in_parts


def widen_table(_result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.init_memory_pools."""
    if (lazy := lazy_of(stage_of(scheduler))) is not None:
        lazy.widen_table()


def _seats(scheduler: Any, stage: Stage, lazy: Lazy, batch: Any) -> list[Seat | None]:
    """Of each request of a batch; None of those that are not lazy."""
    if batch is None or batch.reqs is None:
        return []
    is_extend = batch.forward_mode.is_extend()
    return [_seat(stage, lazy, batch, at, req, is_extend) if _is_lazy(req) else None for at, req in enumerate(batch.reqs)]


def _is_lazy(req: Any) -> bool:
    """An abort may have replaced the prompt."""
    state = state_of(req)
    if state is None or state.outcome is None or not state.outcome.inside:
        return False
    return len(req.origin_input_ids) == state.prompt_tokens


def _seat(stage: Stage, lazy: Lazy, batch: Any, at: int, req: Any, is_extend: bool) -> Seat:
    state, end = state_of(req), int(batch.seq_lens_cpu[at])
    assert state is not None
    start = batch.prefix_lens[at] if is_extend else end - 1
    pruned: Pruned | None = getattr(req, _ATTRIBUTE, None)
    if pruned is None or pruned.retractions != req.retraction_count:
        pruned = admitted(lazy.stages, start, req.retraction_count, pruned)
        setattr(req, _ATTRIBUTE, pruned)
        lazy.aux_cache.add(req, pruned)
    every, chunks, times = (
        given(getattr(state.options, name), getattr(stage.config, name))
        for name in ("revive_every", "revive_chunks", "revive_max")
    )
    return Seat(
        state=state,
        pruned=pruned,
        row=req.kv.req_pool_idx,
        start=start,
        end=end,
        is_last=end >= len(req.full_untruncated_fill_ids),
        prompt=lambda: prompt_of(req, stage),
        every=every,
        chunks=chunks,
        times=times,
    )
