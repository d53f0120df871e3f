"""One prompt read once, dense: what every rule selects from, what the answer costs then, and what the answer attends to."""

from array import array
from typing import Any, NamedTuple

import torch

from benchmarks.selection.examples import Example
from specprefill_sgl.calibration.reader import LayerReading, read
from specprefill_sgl.methods.own_tokens import OwnTokens
from specprefill_sgl.models.recording import Recording
from specprefill_sgl.request.prompts import Cast, Prompt
from specprefill_sgl.request.reading import Reading as OwnReading
from specprefill_sgl.scoring.overlap import over_target
from specprefill_sgl.scoring.voting import own_heads, torch_votes
from specprefill_sgl.selection.rule import MAX_WINDOW

LOOKAHEAD = 16  # the most that any rule asks for
_IGNORED = 4  # attention sinks, no evidence for anybody


class Read(NamedTuple):
    """A prompt as a reader saw it.

    Attributes
    ----------
    window : list of LayerReading
        Queries of the last prompt tokens, keys of all.
    ahead : list of list of Tensor [heads, head_dim]
        Queries of each layer at each decoded token.
    decoded : list of int
    own : specprefill_sgl.request.reading.Reading or None
        The prompt in the reader's own tokens; None: it reads the target's.
    """

    window: list[LayerReading]
    ahead: list[list[torch.Tensor]]
    decoded: list[int]
    own: OwnReading | None = None


class Reading(NamedTuple):
    """A prompt as the target saw it, and its answer.

    Attributes
    ----------
    example : Example
    read : Read
    nll : float32 [answer_tokens]
        Of the true answer after the whole prompt, nats.
    right : bool [answer_tokens]
    wanted : float32 [prompt_tokens]
        Attention of the true answer on each token, mean over layers and heads (the oracle of CLAA, arXiv 2602.16054).
    next_entropy : float
        Of the first token of the answer, nats.
    """

    example: Example
    read: Read
    nll: torch.Tensor
    right: torch.Tensor
    wanted: torch.Tensor
    next_entropy: float


def read_example(model: Any, example: Example) -> Reading:
    """Prompt, true answer, then back to the prompt's end for the lookahead."""
    n = len(example.ids)
    prompt = read(model, example.ids, min(MAX_WINDOW, n))
    keys = [layer.keys.clone() for layer in prompt.layers]
    last = prompt.logits[-1:]
    answer = read(model, example.answer, len(example.answer), prompt.cache)
    nll, right = judged(torch.cat([last, answer.logits[:-1]]), example.answer)
    wanted = torch.stack([_attention(layer, n) for layer in answer.layers]).mean(dim=0)
    prompt.cache.crop(n - prompt.cache.get_seq_length())
    ahead, decoded = _look_ahead(model, int(last.argmax()), prompt.cache)
    window = [layer._replace(keys=own) for layer, own in zip(prompt.layers, keys, strict=True)]
    chance = last.softmax(dim=-1)
    entropy = float(-(chance * chance.clamp_min(1e-30).log()).sum())
    return Reading(example, Read(window, ahead, decoded), nll, right, wanted, entropy)


def read_own(model: Any, tokens: OwnTokens, example: Example) -> Read:
    """The same prompt as another model reads it, in its own tokens.

    Raises
    ------
    ValueError
        If the prompt has no text.
    """
    if (own := tokens.read(example.ids)) is None:
        raise ValueError(f"prompt {example.number} of {example.task} has no text")
    prompt = read(model, own.ids, min(MAX_WINDOW, len(own.ids)))
    window = [layer._replace(keys=layer.keys.clone()) for layer in prompt.layers]
    return Read(window, *_look_ahead(model, int(prompt.logits[-1].argmax()), prompt.cache), own)


def _look_ahead(model: Any, token: int, cache: Any) -> tuple[list[list[torch.Tensor]], list[int]]:
    ahead, decoded = [], []
    for _ in range(LOOKAHEAD - 1):
        step = read(model, [token], 1, cache)
        ahead.append([layer.queries[0] for layer in step.layers])
        decoded.append(token)
        token = int(step.logits.argmax())
    return ahead, decoded


def judged(logits: torch.Tensor, answer: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of answer tokens, and whether each is the likeliest, by logits [answer_tokens, vocabulary]."""
    tokens = torch.tensor(answer, device=logits.device)
    nll = -logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    return nll.cpu(), (logits.argmax(dim=-1) == tokens).cpu()


def _attention(layer: LayerReading, n: int) -> torch.Tensor:
    heads = layer.queries.shape[1]
    mass = layer.votes(range(heads), counted=(_IGNORED, n)).mean(dim=0) / heads
    return mass[:n]


class _Layer(NamedTuple):
    number: int
    scaling: float
    logit_cap: float


class _Draft:
    """A reading as `torch_votes` sees a draft; of its first layers, if a weaker one is wanted."""

    def __init__(self, window: list[LayerReading], voting_part: int):
        self._window, self._part = window, voting_part
        self.device = window[0].keys.device

    def voting_layers(self, prompt_tokens: int) -> dict[int, _Layer]:
        layers = {number: _Layer(number, layer.scaling, layer.logit_cap) for number, layer in enumerate(self._window)}
        return dict(list(layers.items())[-max(len(layers) // self._part, 1) :])

    def sinks(self, number: int) -> torch.Tensor | None:
        return self._window[number].sinks

    def keys(self, layer: _Layer) -> torch.Tensor:
        return self._window[layer.number].keys

    def slots(self, layer: _Layer, slots: torch.Tensor) -> torch.Tensor:
        return slots


def cast(found: Read, prompt: Prompt, layers: int | None = None, voting_part: int = 1) -> Cast:
    """The votes that the product's code counts of a reading, by a prompt's rule; by its first layers, if asked for."""
    rule, n, all_layers = prompt.rule, len(prompt.read_ids), found.window[:layers]
    size = min(rule.window, n)
    ahead = rule.decodes if rule.lookahead_votes else 0
    queries = {}
    for number, layer in enumerate(all_layers):
        rows = [layer.queries[len(layer.queries) - size :]]
        if rule.lookahead_votes:
            rows += [layer.queries[-1:], *(step[number][None] for step in found.ahead[:ahead])]
        queries[number] = torch.cat(rows)
    positions = [*range(n - size, n), *(range(n - 1, n + ahead) if rule.lookahead_votes else ())]
    ids = [*prompt.read_ids, *found.decoded]
    tokens = [ids[position] for position in positions]
    drafted = Recording(queries, torch.arange(n, device=all_layers[0].keys.device), size, tokens, positions)
    heads = None if rule.heads is None else own_heads(rule.heads, 0, lambda number: all_layers[number].queries.shape[1])
    draft = _Draft(all_layers, 1 if heads else voting_part)
    (votes,) = torch_votes(draft, [drafted], rule.pool_kernel, [prompt.counted], heads)
    return over_target(Cast(votes / (len(rule.heads) if rule.heads else 1), size, tokens, positions, prompt.reading))


def as_ids(tokens: list[int]) -> array:
    """Token ids as the product keeps them."""
    return array("q", tokens)
