"""What each rule keeps of a prompt, and what the answer costs then: rows of results."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from benchmarks.selection import signals, sparse
from benchmarks.selection.reading import Reading, as_ids, read_example, read_own
from benchmarks.selection.rules import LONGEST_OF_ABLATIONS, Measured
from specprefill_sgl.calibration.casting import Seen, cast, prompt_of
from specprefill_sgl.methods.own_tokens import OwnTokens
from specprefill_sgl.request.prompts import Cast, Prompt
from specprefill_sgl.selection.first_layers import last_part
from specprefill_sgl.selection.importance import chunk_scores
from specprefill_sgl.stage.selecting import select

KEEP_RATIOS = (0.05, 0.1, 0.2)
PAPER, BEST, SAME = "paper", "best", "paper, same tokens"


def rows_of(
    model: Any,
    example: Any,
    rules: dict[str, Measured],
    ratios: tuple[float, ...] = KEEP_RATIOS,
    readers: Mapping[str, tuple[Any, OwnTokens]] = MappingProxyType({}),
) -> Iterator[dict]:
    """A dense row, then one per rule and keep ratio.

    `loss` is nats per judged answer token above dense; `right`, whether each of them is the likeliest; `evidence`, the share of
    spans that are kept whole; `oracle`, the share of the tokens that the true answer attends to most, as many as are kept.
    `readers` are other models by the names that rules call them.
    """
    reading = read_example(model, example)
    others = {name: read_own(*reader, example) for name, reader in readers.items()}
    reads: dict[str | None, Seen] = {None: reading.seen, **others}
    about = {name: getattr(example, name) for name in ("task", "length", "number", "split")}
    mask = torch.tensor(example.judged)
    dense = float(reading.nll[mask].mean())
    yield {**about, "method": "dense", "keep_ratio": 1.0, "nll": dense, "right": bool(reading.right[mask].all())}
    for ratio in ratios:
        selections = dict(_selections(reading, reads, rules, ratio))
        found = sparse.answers(model, example, [kept for kept, _ in selections.values()])
        for (name, (kept, seen)), (nll, right) in zip(selections.items(), found, strict=True):
            cost = {"loss": float(nll[mask].mean()) - dense, "right": bool(right[mask].all())}
            yield {**about, "method": name, "keep_ratio": ratio, **cost, **_kept(reading, kept), **seen}


def _selections(
    reading: Reading, reads: Mapping[str | None, Seen], rules: dict[str, Measured], ratio: float
) -> Iterator[tuple[str, tuple[np.ndarray, dict]]]:
    """Name -> kept positions, and what the scores said of themselves."""
    chosen = {}
    for name, measured in rules.items():
        if measured.ablation and reading.example.length > LONGEST_OF_ABLATIONS:
            continue
        seen = reads[measured.reader]
        prompt = _prompt(reading, seen, measured, ratio)
        votes = cast(seen, prompt, last_part(range(len(seen.window))[: measured.layers], measured.voting_part))
        chosen[name] = np.sort(select([prompt], [votes])[0].positions)
        yield name, (chosen[name], {"signals": signals.of(reading, prompt, votes, chosen[name])} if name == BEST else {})
    paper = _prompt(reading, reading.seen, rules[PAPER], ratio)
    yield SAME, (exactly(paper, cast(reading.seen, paper), len(chosen[BEST])), {})


def exactly(prompt: Prompt, votes: Cast, tokens: int) -> np.ndarray:
    """Positions by a rule's ranking of chunks, the last chunk first, the one that exceeds so many tokens cut at its end."""
    scores = chunk_scores(votes.votes, votes.n_window, prompt.rule).cpu().numpy()
    last = len(scores) - 1
    order = np.array([last, *(at for at in np.argsort(-scores, kind="stable") if at != last)])
    whole = np.concatenate([prompt.cut.positions(order[at : at + 1]) for at in range(len(order))])
    if tokens < len(prompt.ids) - last * prompt.rule.chunk_size:  # less than the last chunk: its end
        return np.arange(len(prompt.ids) - tokens, len(prompt.ids))
    return np.sort(whole[:tokens])


def _prompt(reading: Reading, seen: Seen, measured: Measured, ratio: float) -> Prompt:
    return prompt_of(as_ids(reading.example.ids), measured.rule, ratio, own=seen.own, tail_part=measured.tail_part)


def _kept(reading: Reading, kept: np.ndarray) -> dict:
    held = set(kept.tolist())
    spans = [all(at in held for at in range(*span)) for span in reading.example.evidence]
    most_wanted = set(reading.wanted.argsort(descending=True)[: len(kept)].tolist())
    return {
        "kept": len(kept),
        "prompt_tokens": len(reading.example.ids),
        "evidence": sum(spans) / len(spans) if spans else None,
        "oracle": len(held & most_wanted) / len(kept),
    }
