"""What leaves the scheduler: the original prompt length and the reply object, for every output of every request."""

from typing import Any

from specprefill_sgl.observability.reply import KEY, reply_object
from specprefill_sgl.request.state import state_of


def report(_result: Any, accumulator: Any, *, req: Any) -> None:
    """AFTER _GenerationStreamAccumulator.accept: correct the last row, if this request added one."""
    state = state_of(req)
    if state is None or state.outcome is None or not accumulator.output_reqs or accumulator.output_reqs[-1] is not req:
        return
    accumulator.prompt_tokens[-1] = state.prompt_tokens
    rows = len(accumulator.output_reqs)
    column = accumulator.customized_info.setdefault(KEY, [])
    column.extend([None] * (rows - len(column)))
    column[-1] = reply_object(state, final=req.finished())
