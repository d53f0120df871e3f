"""Sampled answers are asked again, alone on the idle server: were they right under load?

Kept positions and greedy tokens must be equal. What is kept depends on one more thing than the prompt: a beginning of it that
the radix cache holds undropped is kept for free, even the one token that random prompts share. Where other positions were kept
under load, that beginning is put into the cache again, and the prompt asked once more.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks import launch
from benchmarks.soak.clients import Asked, generate
from specprefill_sgl.selection import leading_run


class Verdict(NamedTuple):
    """What is counted, and what is wrong ("" if nothing)."""

    counted: str
    problem: str = ""


def ask_again(url: str, turns: list[Asked]) -> Iterator[Verdict]:
    """Verdicts on a conversation, turn by turn.

    A next turn that keeps other tokens than under load cannot be compared: what it builds on may have been evicted there.
    """
    launch.flush(url)
    for number, asked in enumerate(turns):
        alone = _alone(url, asked)
        if _positions(alone) == _positions(asked.reply):
            yield Verdict("asked again", _other_tokens(asked, alone))
        elif number:
            yield Verdict("next turns that kept other tokens alone")
        else:
            yield Verdict("asked again with its beginning cached", _other_with_beginning(url, asked))


def score_difference(asked: Asked, alone: dict) -> float:
    """The largest of a chunk's scores under load and alone, relative to its score; infinite if only one reply has scores."""
    ours, theirs = (reply["meta_info"]["spec_prefill"].get("scores") for reply in (asked.reply, alone))
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else np.inf
    return float(np.max(np.abs(np.subtract(ours, theirs)) / np.minimum(ours, theirs)))


def _other_with_beginning(url: str, asked: Asked) -> str:
    kept = leading_run(np.array(_positions(asked.reply)))
    launch.flush(url)
    if kept:
        generate(url, asked.ids[:kept], {"spec_prefill": False}, 1)
    alone = _alone(url, asked)
    if _positions(alone) == _positions(asked.reply):
        return _other_tokens(asked, alone)
    return f"{_named(asked)} kept other positions; scores differ by {score_difference(asked, alone):.1e}"


def _alone(url: str, asked: Asked) -> dict:
    return generate(url, asked.ids, asked.custom, len(asked.reply["output_ids"]))


def _other_tokens(asked: Asked, reply: dict) -> str:
    same = reply["output_ids"] == asked.reply["output_ids"]
    return "" if same else f"{_named(asked)} was answered {asked.reply['output_ids']}, then {reply['output_ids']}"


def _named(asked: Asked) -> str:
    return f"prompt of {len(asked.ids)} tokens, {asked.custom},"


def _positions(reply: dict) -> list[int]:
    return reply["meta_info"]["spec_prefill"]["positions"]
