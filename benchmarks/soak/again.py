"""Sampled answers are asked again, alone on the idle server: were they right under load?

What was decided, kept positions and greedy tokens must be equal. What is kept depends on one more thing than the prompt: a
beginning that the radix cache holds undropped is kept for free, even the one token that random prompts share. Where a few first
tokens more were kept under load, they are put into the cache again, and the prompt is asked once more.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks import launch
from benchmarks.soak.clients import Asked, generate
from benchmarks.soak.recovered import changes, without_recovery, wrong
from specprefill_sgl.selection.chunks import leading_run

_SHARED = 8  # tokens that random prompts may share at their beginning


class Verdict(NamedTuple):
    """What is counted, and what is wrong ("" if nothing)."""

    counted: str
    problem: str = ""


def ask_again(url: str, turns: list[Asked], *, replicas: int) -> Iterator[Verdict]:
    """Verdicts on a conversation, turn by turn.

    A next turn that keeps other tokens than under load cannot be compared: what it builds on may have been evicted there.
    """
    launch.flush(url)
    for number, asked in enumerate(turns):
        if changes(asked.reply):
            if number:  # the prompt of a next turn may have begun with what was evicted since
                yield Verdict("next turns that recovered")
                continue
            launch.flush(url)
            found = wrong(url, asked)
            yield Verdict("asked again in parts", found and f"{_named(asked)} {found}")
            continue
        alone = _alone(url, asked)
        if _decided(alone) == _decided(asked.reply):
            yield Verdict("asked again", _wrong_tokens(asked, alone))
        elif number:
            yield Verdict("next turns that kept other tokens alone")
        else:
            yield Verdict("asked again with its beginning cached", _wrong_with_beginning(url, asked, replicas))


def _wrong_with_beginning(url: str, asked: Asked, replicas: int) -> str:
    beginning = leading_run(np.array(_decided(asked.reply)[-1]))
    if not 0 < beginning <= _SHARED:
        return f"{_named(asked)} was decided {_decided(asked.reply)} under load"
    launch.flush(url)
    for _ in range(replicas):  # which take turns
        generate(url, asked.ids[:beginning], {"spec_prefill": False}, 1)
    alone = _alone(url, asked)
    if _decided(alone) == _decided(asked.reply):
        return _wrong_tokens(asked, alone)
    return f"{_named(asked)} was decided {_decided(asked.reply)}, then {_decided(alone)}, scores {_scores(asked.reply, alone)}"


def _alone(url: str, asked: Asked) -> dict:
    return generate(url, asked.ids, without_recovery(asked.custom), len(asked.reply["output_ids"]))


def _decided(reply: dict) -> tuple[bool, str | None, list[int]]:
    """Whether it was sparse, why not, and the kept positions."""
    info = reply["meta_info"]["spec_prefill"]
    return info["applied"], info["reason"], info["positions"]


def _scores(*replies: dict) -> list[list[float] | None]:
    return [reply["meta_info"]["spec_prefill"].get("scores") for reply in replies]


def _wrong_tokens(asked: Asked, reply: dict) -> str:
    same = reply["output_ids"] == asked.reply["output_ids"]
    return "" if same else f"{_named(asked)} was answered {asked.reply['output_ids']}, then {reply['output_ids']}"


def _named(asked: Asked) -> str:
    return f"prompt of {len(asked.ids)} tokens, {asked.custom},"
