"""Penalties, and tokens before an answer may end, go on over a retraction of ours: SGLang counts from its beginning again."""

from collections.abc import Sequence
from typing import Any

import torch

from specprefill_sgl.request.skipcode import TOKEN_MASK
from specprefill_sgl.request.state import state_of


class _Rows:
    """What a penalizer asks of a batch."""

    def __init__(self, reqs: Sequence[Any], device: Any):
        self.reqs, self.device = reqs, device


def count_again(batch: Any) -> None:
    """After ScheduleBatch.prepare_for_extend: what requests of the batch had said before they went back to the queue.

    A row of penalizers for each request, with SGLang's own means, joined as SGLang joins batches.
    """
    fresh = batch.sampling_info.penalizer_orchestrator
    if not fresh.is_required or not any(_went_back(req) for req in batch.reqs):
        return
    rows = [_Rows([req], fresh.device) for req in batch.reqs]
    counted = [type(fresh)(fresh.vocab_size, row, set(fresh.penalizers)) for row in rows]
    for req, one in zip(batch.reqs, counted, strict=True):
        for token in _counted(req, lags=batch.enable_overlap) if _went_back(req) else ():
            one.cumulate_output_tokens(torch.tensor([token], device=fresh.device))
    joined = counted[0]
    for one in counted[1:]:
        joined.merge(one)
    joined.batch = batch  # it holds no reference to the rows, which end here
    batch.sampling_info.penalizer_orchestrator = joined


def _went_back(req: Any) -> bool:
    state = state_of(req)
    return bool(state is not None and req.output_ids and (state.revived or state.backfilled is not None))


def _counted(req: Any, *, lags: bool) -> list[int]:
    """What SGLang would have counted by now: under the overlap schedule not the last token, but the prompt's last one."""
    said = list(req.output_ids)
    return [req.origin_input_ids[-1] & TOKEN_MASK, *said[:-1]] if lags else said
