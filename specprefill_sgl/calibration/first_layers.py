"""How many first layers suffice: what they keep of a prompt beside what the whole model keeps, and beside the evidence.

For every k two votes are counted, as `early-layers` serves them: that of heads calibrated among the first k layers, and that of
the last quarter of them. Each prompt is read once, all layers together; heads are those that the other kinds of prompts choose.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from specprefill_sgl.calibration import ranking
from specprefill_sgl.calibration.casting import Seen, cast, look_ahead, prompt_of
from specprefill_sgl.calibration.kinds import Known
from specprefill_sgl.calibration.reader import read
from specprefill_sgl.request.prompts import Cast, Prompt
from specprefill_sgl.scoring.torch_scoring import max_votes
from specprefill_sgl.selection.budget import free_chunks
from specprefill_sgl.selection.choose import choose
from specprefill_sgl.selection.first_layers import VOTING_PART, last_part, of_last_tokens
from specprefill_sgl.selection.importance import chunk_scores
from specprefill_sgl.selection.rule import Heads, preset

LEAST = 2  # layers: what `--spec-prefill-layers` takes
_PARTS = 5  # of prompts of one kind: heads are judged by a part that did not choose them
_IN_A_ROW, _AS_GOOD, _DEEPEST = 3, 0.95, 0.75  # of a plateau


class Reading(NamedTuple):
    """A prompt that was read.

    Attributes
    ----------
    found : Found
    ids : list of int
    evidence : bool [tokens]
    seen : Seen
        Its keys stay on the model's device: as much memory as half of the prompt's KV cache.
    """

    found: ranking.Found
    ids: list[int]
    evidence: np.ndarray
    seen: Seen


class Kept(NamedTuple):
    """Shares of tokens that are kept.

    Attributes
    ----------
    first : float64 [depths, 2, 2]
        By the first layers, in the order of `depths`: by calibrated heads, by the last quarter of the layers; of each the share
        of what the whole model chooses (not of what both keep unasked), and of the evidence.
    whole : float
        Of the evidence, by the whole model: calibrated heads, window and lookahead.
    """

    first: np.ndarray
    whole: float


def take(model: Any, tokenizer: Any, known: Known) -> Reading:
    """Read a prompt, then decode as many tokens as the whole model's rule asks for.

    Raises
    ------
    ValueError
        If a part of the evidence is not in the prompt exactly once.
    """
    rule = preset("best", ())
    ids, evidence = ranking.tokens_of(tokenizer, known)
    forward = read(model, ids, min(rule.window, len(ids)))
    found = ranking.found_in(forward.layers, known.kind, evidence, rule)
    return Reading(found, ids, evidence, look_ahead(model, forward, rule.decodes))


def depths(reading: Reading, layers: int) -> dict[int, list[int]]:
    """k -> which attention layers of the first k see all of a prompt, in the order of a forward; last the whole model.

    Only those k that end in such a layer: any other costs more than the one before, and votes alike.

    Raises
    ------
    ValueError
        If there is none but the whole model.
    """
    whole = [number for number, layer in enumerate(reading.seen.window) if layer.window is None]
    ends = {reading.found.hidden[number] + 1: whole[: at + 1] for at, number in enumerate(whole)}
    found = {k: numbers for k, numbers in ends.items() if LEAST <= k < layers}
    if not found:
        raise ValueError("none of the first layers attends to a whole prompt")
    return {**found, layers: whole}


def chosen_heads(readings: Sequence[Reading], below: Mapping[int, Sequence[int]], count: int) -> list[dict[int, Heads]]:
    """For each reading: k -> at most `count` heads that prompts of other kinds choose among the first k layers.

    Prompts of one kind are cut into five parts in place of kinds.

    Raises
    ------
    ValueError
        If there is one prompt only.
    """
    if len(readings) < 2:
        raise ValueError("one prompt is too few: heads are judged by prompts that did not choose them")
    groups: list[Any] = [one.found.kind for one in readings]
    if len(set(groups)) == 1:
        groups = [number % _PARTS for number in range(len(readings))]
    heads = {}
    for group in set(groups):
        votes = ranking.scores([one.found for one, own in zip(readings, groups, strict=True) if own != group])
        heads[group] = {k: ranking.best_heads(votes, count, numbers[-1] + 1) for k, numbers in below.items()}
    return [heads[group] for group in groups]


def kept(reading: Reading, below: Mapping[int, Sequence[int]], heads: Mapping[int, Heads], ratio: float) -> Kept:
    """Of one prompt.

    Parameters
    ----------
    reading : Reading
    below : mapping
        From `depths`.
    heads : mapping
        Of this prompt, from `chosen_heads`.
    ratio : float
        To keep.
    """
    ids = array("q", reading.ids)
    best = prompt_of(ids, preset("best", heads[max(below)]), ratio)
    calibrated = [prompt_of(ids, of_last_tokens(preset("best", heads[k])), ratio) for k in below]
    plain = prompt_of(ids, of_last_tokens(preset("best", None)), ratio)
    by_heads = {prompt.rule: cast(reading.seen, prompt) for prompt in calibrated}
    by_layer = {number: cast(reading.seen, plain, [number]) for number in below[max(below)]}
    last = [[by_layer[number] for number in last_part(numbers, VOTING_PART)] for numbers in below.values()]
    casts = [cast(reading.seen, best), *(by_heads[prompt.rule] for prompt in calibrated), *map(_strongest, last)]
    masks = _select([best, *calibrated, *[plain] * len(last)], casts)
    chosen = masks[0] & ~_mask(best, np.flatnonzero(best.cut.forced))
    overlap = (masks & chosen).sum(axis=1) / max(chosen.sum(), 1)
    evidence = masks[:, reading.evidence].mean(axis=1)
    first = np.stack([overlap[1:], evidence[1:]], axis=-1).reshape(2, len(below), 2).swapaxes(0, 1)
    return Kept(first, float(evidence[0]))


def mean(readings: Sequence[Reading], each: Sequence[Kept]) -> Kept:
    """Over prompts, every kind counting alike."""
    kinds = [one.found.kind for one in readings]
    first, whole = (ranking.mean_of_kinds(kinds, values) for values in zip(*each, strict=True))
    return Kept(first, float(whole))


def _strongest(casts: Sequence[Cast]) -> Cast:
    return casts[0]._replace(votes=max_votes(one.votes for one in casts))


def _select(prompts: Sequence[Prompt], casts: Sequence[Cast]) -> np.ndarray:
    """What is kept, bool [prompts, tokens]: all are the same prompt, by different rules."""
    chosen = choose(
        [chunk_scores(one.votes, one.n_window, prompt.rule) for prompt, one in zip(prompts, casts, strict=True)],
        [prompt.cut.forced for prompt in prompts],
        [free_chunks(prompt.cut, prompt.keep_ratio, prompt.rule.budget_unit) for prompt in prompts],
    )
    return np.stack([_mask(prompt, one.chunks) for prompt, one in zip(prompts, chosen, strict=True)])


def _mask(prompt: Prompt, chunks: np.ndarray) -> np.ndarray:
    mask: np.ndarray = np.zeros(len(prompt.ids), dtype=bool)
    mask[prompt.cut.positions(chunks)] = True
    return mask


def plateau(good: Mapping[int, float], layers: int) -> int:
    """The smallest k that, like the next two, is within 95 % of the best three in a row, taken by their worst, up to 3/4 depth.

    Parameters
    ----------
    good : mapping
        k, ascending -> how good it is, more is better.
    layers : int
        Of the model.
    """
    ks = list(good)
    worst = {k: min(good[other] for other in ks[at : at + _IN_A_ROW]) for at, k in enumerate(ks)}
    up_to = [k for k in ks if k <= _DEEPEST * layers] or ks
    best = max(worst[k] for k in up_to)
    return next(k for k in up_to if worst[k] >= _AS_GOOD * best)
