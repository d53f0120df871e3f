"""Which prompts are still to be prefilled whole, later: one entry per sparse request that asked for it."""

from array import array
from dataclasses import dataclass
from typing import Any

from specprefill_sgl.config import Backfill
from specprefill_sgl.hooks.internal_state import metrics_of
from specprefill_sgl.request.options import given
from specprefill_sgl.request.state import state_of
from specprefill_sgl.stage.stage import Stage

MAX_JOBS = 64  # the oldest gives way: its conversation has waited longest without a pause of the server
_JOBS = "_spec_prefill_backfills"


@dataclass(slots=True, eq=False)
class Job:
    """The dropped tokens of one request.

    Attributes
    ----------
    req : Req or None
        SGLang's request; None once it is answered.
    ids : array('q')
        What is to be in the radix cache: its prompt as it arrived, later with its answer.
    prompt_tokens : int
        Of these, the prompt.
    mode : {"turn", "answer"}
        For the turn that may follow, or for the rest of this answer.
    lora_id : str or None
    namespace : tuple
        SGLang's `extra_key` and `cache_salt`.
    covered : int
        Leading ids that the radix cache held when last looked at.
    piece : Req or None
        The internal request that computes some of them, in flight.
    """

    req: Any
    ids: array
    prompt_tokens: int
    mode: Backfill
    lora_id: str | None
    namespace: tuple
    covered: int = 0
    piece: Any = None


def jobs_of(scheduler: Any) -> list[Job]:
    """What is to be done, the oldest first."""
    jobs = getattr(scheduler, _JOBS, None)
    if jobs is None:
        jobs = []
        setattr(scheduler, _JOBS, jobs)
    return jobs


def plan(scheduler: Any, req: Any, stage: Stage) -> None:
    """A request became sparse, its ids still plain: note it, if it or the server asks for what was dropped."""
    state = state_of(req)
    assert state is not None
    mode = given(state.options.backfill, stage.config.backfill)
    if mode == "off":
        return
    jobs = jobs_of(scheduler)
    ids, namespace = req.origin_input_ids, (req.extra_key, req.cache_salt)
    jobs.append(Job(req, ids, len(ids), mode, req.lora_id, namespace))
    if len(jobs) > MAX_JOBS:
        end(scheduler, jobs[0], "displaced")


def end(scheduler: Any, job: Job, outcome: str) -> None:
    """Nothing more is computed for it."""
    jobs = jobs_of(scheduler)
    jobs[:] = [one for one in jobs if one is not job]
    metrics_of(scheduler).backfilled(outcome)


def cancel(scheduler: Any, req: Any = None) -> None:
    """Those of a request, or all."""
    for job in [job for job in jobs_of(scheduler) if req is None or job.req is req]:
        end(scheduler, job, "cancelled")
