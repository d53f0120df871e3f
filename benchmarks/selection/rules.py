"""The rules that are measured: the product's presets, and what is left of `best` when one part of it is another."""

import json
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks import launch
from specprefill_sgl.selection.first_layers import VOTING_PART, of_last_tokens
from specprefill_sgl.selection.rule import PAPER, TAIL_PART, Heads, Rule, preset

SHALLOW = (8, 15)  # layers of the weaker drafts
READERS = {"pair's draft": launch.DRAFT, "pair's target": launch.TARGET}  # small models of another vocabulary
LONGEST_OF_ABLATIONS = 2048  # tokens
_HEADS = Path(__file__).parents[1] / "real_model"


class Measured(NamedTuple):
    """A rule to measure.

    Attributes
    ----------
    rule : Rule
    layers : int or None
        First layers of the model that are the draft; None: all.
    ablation : bool
        Measured on short prompts only.
    tail_part : int
        The tail may take one token in so many of the budget.
    voting_part : int
        Without heads, one of so many layers votes, the last ones.
    reader : str or None
        Another model, with a tokenizer of its own, by its name in `READERS`; None: the model itself.
    """

    rule: Rule
    layers: int | None = None
    ablation: bool = False
    tail_part: int = TAIL_PART
    voting_part: int = 1
    reader: str | None = None


def rules(heads: dict[int | None, Heads]) -> dict[str, Measured]:
    """Name -> rule. `heads` are those calibrated for the whole draft (None) and for its first layers."""
    best = preset("best", heads[None])
    uncalibrated = preset("best", None)
    changed = {
        "no lookahead": {"lookahead": 1},
        "lookahead 4": {"lookahead": 4},
        "lookahead 16": {"lookahead": 16},
        "in turns": {"window_votes": "turns"},
        "no window": {"window": 0},
        "window 32": {"window": 32},
        "window 64": {"window": 64},
        "mean over votes": {"over_votes": "mean"},
        "chunk 32, pool 13": {"chunk_size": 32, "pool_kernel": 13},
        "chunk 16": {"chunk_size": 16},
        "sinks and tail counted": {"ignore_first": 0, "ignore_tail": False},
        "no tail": {"keep_last": 0},
    }
    named = {"paper": Measured(PAPER), "best": Measured(best), "best, no heads": Measured(uncalibrated)}
    for name, change in changed.items():
        named[f"best, {name}"] = Measured(msgspec.structs.replace(best, **change), ablation=True)
    named["best, tail to half of the budget"] = Measured(best, ablation=True, tail_part=2)
    for layers in SHALLOW:
        named[f"paper, {layers} layers"] = Measured(PAPER, layers, ablation=True)
        named[f"best, {layers} layers"] = Measured(preset("best", heads[layers]), layers, ablation=True)
    for layers in (*SHALLOW, 20):
        calibrated = {"": heads[layers]} if layers in heads else {}
        for name, own in {**calibrated, ", no heads": None}.items():
            rule = of_last_tokens(preset("best", own))
            part = VOTING_PART if own is None else 1
            named[f"early-layers {layers}{name}"] = Measured(rule, layers, ablation=True, voting_part=part)
    for name in READERS:
        named[f"{name}, own tokens"] = Measured(uncalibrated, ablation=True, reader=name)
    return named


def heads_of(layers: int | None) -> Heads:
    """Of the real model, calibrated for all of it or for its first layers (`calibrate --layers`)."""
    name = "heads.json" if layers is None else f"heads-{layers}.json"
    return tuple((layer, head) for layer, head in json.loads((_HEADS / name).read_text())["heads"])
