"""From what a Hugging Face model saw of a prompt to the votes that the product's code counts of it."""

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from specprefill_sgl.calibration.reader import Forward, LayerReading, read
from specprefill_sgl.models.recording import Recording
from specprefill_sgl.request.prompts import Cast, Prompt
from specprefill_sgl.request.reading import Reading
from specprefill_sgl.scoring.overlap import over_target
from specprefill_sgl.scoring.voting import own_heads, torch_votes
from specprefill_sgl.selection.budget import affordable_tail
from specprefill_sgl.selection.rule import TAIL_PART, Rule


class Seen(NamedTuple):
    """A prompt as a model saw it.

    Attributes
    ----------
    window : list of LayerReading
        Queries of the last prompt tokens, keys of all.
    ahead : list of list of Tensor [heads, head_dim]
        Queries of each layer at each decoded token.
    decoded : list of int
    own : Reading or None
        The prompt in the model's own tokens, if it has another tokenizer than the target.
    """

    window: list[LayerReading]
    ahead: list[list[torch.Tensor]]
    decoded: list[int]
    own: Reading | None = None


def look_ahead(model: Any, prompt: Forward, steps: int) -> Seen:
    """Decode greedily after a prompt, whose cache holds the prompt alone and grows; an end of sequence does not stop it."""
    ahead: list[list[torch.Tensor]] = []
    decoded: list[int] = []
    token = int(prompt.logits[-1].argmax())
    for _ in range(steps):
        step = read(model, [token], 1, prompt.cache)
        ahead.append([layer.queries[0] for layer in step.layers])
        decoded.append(token)
        token = int(step.logits.argmax())
    return Seen(prompt.layers, ahead, decoded)


class _Layer(NamedTuple):
    number: int
    scaling: float
    logit_cap: float


class _Reader:
    """What was seen as `torch_votes` sees a private model."""

    def __init__(self, window: Sequence[LayerReading], layers: Sequence[int]):
        self._window, self._layers = window, layers
        self.device = window[0].keys.device

    def voting_layers(self, read_tokens: int) -> dict[int, _Layer]:
        return {n: _Layer(n, self._window[n].scaling, self._window[n].logit_cap) for n in self._layers}

    def sinks(self, number: int) -> torch.Tensor | None:
        return self._window[number].sinks

    def keys(self, layer: _Layer) -> torch.Tensor:
        return self._window[layer.number].keys

    def slots(self, layer: _Layer, slots: torch.Tensor) -> torch.Tensor:
        return slots


def prompt_of(ids: array, rule: Rule, ratio: float, *, own: Reading | None = None, tail_part: int = TAIL_PART) -> Prompt:
    """A prompt as a server makes it of a request without settings; its tail may take one in so many of the budget."""
    size, unit = rule.chunk_size, rule.budget_unit
    tail = affordable_tail(len(ids), rule.keep_last, part=tail_part, chunk_size=size, keep_ratio=ratio, unit=unit)
    protect = () if own is None else own.unread
    return Prompt(ids=ids, keep_ratio=ratio, rule=rule, keep_last=tail, protect=protect, reading=own)


def cast(seen: Seen, prompt: Prompt, layers: Sequence[int] | None = None) -> Cast:
    """The votes by a prompt's rule, for the target's tokens.

    Parameters
    ----------
    seen : Seen
        With at least as many queries and decoded tokens as the rule asks for.
    prompt : Prompt
    layers : sequence of int, optional
        Attention layers that vote, in the order of a forward from 0; without it all. Chosen heads of others are silent.
    """
    rule, n = prompt.rule, len(prompt.read_ids)
    layers = range(len(seen.window)) if layers is None else layers
    size = min(rule.window, n)
    ahead = rule.decodes if rule.lookahead_votes else 0
    queries = {}
    for number in layers:
        window = seen.window[number].queries
        rows = [window[len(window) - size :]]
        if rule.lookahead_votes:
            rows += [window[-1:], *(step[number][None] for step in seen.ahead[:ahead])]
        queries[number] = torch.cat(rows)
    positions = [*range(n - size, n), *(range(n - 1, n + ahead) if rule.lookahead_votes else ())]
    ids = [*prompt.read_ids, *seen.decoded]
    tokens = [ids[position] for position in positions]
    recorded = Recording(queries, torch.arange(n, device=seen.window[0].keys.device), size, tokens, positions)
    heads = None if rule.heads is None else own_heads(rule.heads, 0, lambda number: seen.window[number].queries.shape[1])
    (votes,) = torch_votes(_Reader(seen.window, layers), [recorded], rule.pool_kernel, [prompt.counted], heads)
    return over_target(Cast(votes / (len(rule.heads) if rule.heads else 1), size, tokens, positions, prompt.reading))
