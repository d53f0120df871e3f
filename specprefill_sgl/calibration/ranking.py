"""How well each head finds the evidence of prompts, and which heads to choose for it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from specprefill_sgl.calibration.kinds import Known
from specprefill_sgl.calibration.reader import LayerReading, read
from specprefill_sgl.selection.rule import Heads, Rule

_FRACTION = 0.5


class Found(NamedTuple):
    """What the heads of a draft find of one prompt.

    Attributes
    ----------
    kind : str
    tokens : int
    votes : float64 [layers, heads]
        Mean over the evidence of what a head votes for it, as the rule counts; NaN for a head that cannot see so far.
    hidden : tuple of int [layers]
        Which of the model's layers each is in, linear ones counted.
    """

    kind: str
    tokens: int
    votes: np.ndarray
    hidden: tuple[int, ...]


def find(model: Any, tokenizer: Any, known: Known, rule: Rule) -> Found:
    """Read a prompt and see where the window's queries look; raises what `tokens_of` raises."""
    ids, evidence = tokens_of(tokenizer, known)
    return found_in(read(model, ids, min(rule.window, len(ids))).layers, known.kind, evidence, rule)


def tokens_of(tokenizer: Any, known: Known) -> tuple[list[int], np.ndarray]:
    """A prompt's ids, in the tokenizer's chat format if it has one, and which of them are evidence, bool [tokens].

    Raises
    ------
    ValueError
        If a part of the evidence is not in the prompt exactly once.
    """
    text, special = known.prompt, True
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": known.prompt}]
        text, special = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), False
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    evidence: np.ndarray = np.zeros(len(ids), dtype=bool)
    for part in known.evidence:
        if text.count(part) != 1:
            raise ValueError(f"the evidence {part!r} is {text.count(part)} times in its prompt, not once")
        start = text.index(part)
        evidence |= np.array([first < start + len(part) and last > start for first, last in offsets])
    return ids, evidence


def found_in(layers: Sequence[LayerReading], kind: str, evidence: np.ndarray, rule: Rule) -> Found:
    """What the window's queries find of the evidence, bool [tokens]."""
    whole = [layer.window is None for layer in layers]  # prompts to come may be longer than these
    votes = np.full((len(layers), max(layer.queries.shape[1] for layer in layers)), np.nan)
    for number, layer in enumerate(layers):
        if whole[number] or not any(whole):
            votes[number, : layer.queries.shape[1]] = _votes(layer, evidence, rule)
    return Found(kind, len(evidence), votes, tuple(layer.hidden for layer in layers))


def _votes(layer: LayerReading, evidence: np.ndarray, rule: Rule) -> np.ndarray:
    """Of each head of a layer, float64 [heads]."""
    counted = (rule.ignore_first, len(evidence) - rule.keep_last)
    each = [layer.votes([head], rule.pool_kernel, counted).amax(dim=0) for head in range(layer.queries.shape[1])]
    return torch.stack(each).double().cpu().numpy()[:, evidence].mean(axis=1)


def scores(found: Sequence[Found]) -> np.ndarray:
    """Mean votes of each head, every kind counting alike: float64 [layers, heads]."""
    return mean_of_kinds([one.kind for one in found], [one.votes for one in found])


def mean_of_kinds(kinds: Sequence[str], values: Sequence[Any]) -> np.ndarray:
    """Mean of float64 arrays of one shape, every kind counting alike."""
    each = [[value for value, own in zip(values, kinds, strict=True) if own == kind] for kind in sorted(set(kinds))]
    mean: np.ndarray = np.mean([np.mean(one, axis=0) for one in each], axis=0)
    return mean


def best_heads(mean: np.ndarray, count: int, layers: int | None = None) -> Heads:
    """At most `count` heads with the highest scores, best first; of the first attention layers only, if so many are given.

    None that scores less than half of what the best one does: with few good heads, more would drown them.
    """
    usable = np.where(np.isnan(mean), -1.0, mean)[:layers]
    if not len(usable):
        return ()
    order = np.argsort(-usable, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, usable.shape), strict=True)
    return tuple((int(layer), int(head)) for layer, head in pairs if usable[layer, head] >= usable.max() * _FRACTION)
