"""Sampled answers are asked again, alone on the idle server: were they right under load?

Kept positions and greedy tokens must be equal. Float32 sums depend on what shares a forward, so where two chunks score almost
the same, the other one may have been kept: scores of both replies must then agree within `TIE`, and the answer is asked for
once more on exactly the positions that were kept under load, and must be the same there.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks import launch
from benchmarks.soak.clients import Asked, generate

TIE = 1e-3  # relative difference of a chunk's scores
_CHUNK = 32  # the server's default


class Verdict(NamedTuple):
    """What is counted, what is wrong ("" if nothing), and the largest relative difference of the two replies' scores."""

    counted: str
    problem: str = ""
    difference: float = 0.0


def ask_again(url: str, turns: list[Asked]) -> Iterator[Verdict]:
    """Verdicts on a conversation, turn by turn.

    A next turn that keeps other tokens than under load cannot be compared: what it builds on may have been evicted there.
    """
    launch.flush(url)
    for number, asked in enumerate(turns):
        alone = generate(url, asked.ids, asked.custom, len(asked.reply["output_ids"]))
        difference = _score_difference(asked.reply, alone)
        if _positions(alone) == _positions(asked.reply):
            yield Verdict("asked again", _other_tokens(asked, alone), difference)
        elif number:
            yield Verdict("next turns that kept other tokens alone")
        elif difference > TIE:
            yield Verdict("asked again", f"{_named(asked)} kept other positions, scores differ by {difference:.1e}", difference)
        else:
            yield Verdict("near ties of chunk scores", "", difference)
            launch.flush(url)
            pinned = generate(url, asked.ids, _keeping(asked), len(asked.reply["output_ids"]))
            lost = (
                "" if _positions(pinned) == _positions(asked.reply) else f"{_named(asked)} could not be asked on its positions"
            )
            yield Verdict("asked again", lost or _other_tokens(asked, pinned))


def _score_difference(loaded: dict, alone: dict) -> float:
    """Of chunks, relative; 0 if neither prompt was scored, infinite if only one was."""
    ours, theirs = (reply["meta_info"]["spec_prefill"].get("scores") for reply in (loaded, alone))
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else np.inf
    return float(np.max(np.abs(np.subtract(ours, theirs)) / np.minimum(ours, theirs)))


def _keeping(asked: Asked) -> dict:
    """`custom_params` with which the same chunks are kept: all are protected but the best, which is the one that is chosen."""
    chunks = {position // _CHUNK for position in _positions(asked.reply)}
    scores = asked.reply["meta_info"]["spec_prefill"]["scores"]
    best = max(chunks - {len(scores) - 1}, key=scores.__getitem__)
    spans = [[chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(asked.ids))] for chunk in sorted(chunks - {best})]
    return {"spec_prefill_keep_ratio": 1e-6, "spec_prefill_protect": spans}


def _other_tokens(asked: Asked, reply: dict) -> str:
    same = reply["output_ids"] == asked.reply["output_ids"]
    return "" if same else f"{_named(asked)} was answered {asked.reply['output_ids']}, then {reply['output_ids']}"


def _named(asked: Asked) -> str:
    return f"prompt of {len(asked.ids)} tokens, {asked.custom},"


def _positions(reply: dict) -> list[int]:
    return reply["meta_info"]["spec_prefill"]["positions"]
