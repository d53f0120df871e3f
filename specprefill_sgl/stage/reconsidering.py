"""Running requests whose answers are asked what they lack: what comes of it, and when a prompt is not worth it."""

from typing import NamedTuple

import numpy as np

from specprefill_sgl.request.prompts import Outcome, Prompt

_MOST_READ_AGAIN = 512  # tokens of a prompt: what a prefix cache may lack of it that is not evicted


class Reconsidered(NamedTuple):
    """What an answer asked for.

    Attributes
    ----------
    outcome : {"revived", "nothing", "evicted"}
        Evicted: the reader has lost the prompt's keys, or has failed.
    positions : int64 [kept_tokens] or None
        What is kept with what returns, if something does.
    """

    outcome: str
    positions: np.ndarray | None = None


def reconsidered(prompt: Prompt, outcome: Outcome) -> Reconsidered:
    """Of an answer that was read."""
    if outcome.positions is None or not len(outcome.positions):
        return Reconsidered("evicted")
    assert prompt.kept is not None
    more = len(outcome.positions) > len(prompt.kept)
    return Reconsidered("revived", outcome.positions) if more else Reconsidered("nothing")


def is_evicted(prompt: Prompt, cached: int) -> bool:
    """Whether the reader has lost the keys that an answer asks: a prompt is not read again for a few tokens that may return."""
    return bool(prompt.answer) and len(prompt.read_ids) - cached > _MOST_READ_AGAIN


def without_draft(prompts: list[Prompt]) -> str:
    """What becomes of a group of prompts, or of answers, whose draft failed; for the log."""
    if prompts[0].answer:
        return f"to {len(prompts)} running requests nothing more returns"
    return f"{len(prompts)} prompts are prefilled dense"
