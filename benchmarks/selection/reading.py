"""One prompt read once, dense: what every rule selects from, what the answer costs then, and what the answer attends to."""

from array import array
from typing import Any, NamedTuple

import torch

from benchmarks.selection.examples import Example
from specprefill_sgl.calibration.casting import Seen, look_ahead
from specprefill_sgl.calibration.reader import LayerReading, read
from specprefill_sgl.methods.own_tokens import OwnTokens
from specprefill_sgl.selection.rule import MAX_WINDOW

LOOKAHEAD = 16  # the most that any rule asks for
_IGNORED = 4  # attention sinks, no evidence for anybody


class Reading(NamedTuple):
    """A prompt as the target saw it, and its answer.

    Attributes
    ----------
    example : Example
    seen : Seen
    nll : float32 [answer_tokens]
        Of the true answer after the whole prompt, nats.
    right : bool [answer_tokens]
    wanted : float32 [prompt_tokens]
        Attention of the true answer on each token, mean over layers and heads (the oracle of CLAA, arXiv 2602.16054).
    next_entropy : float
        Of the first token of the answer, nats.
    """

    example: Example
    seen: Seen
    nll: torch.Tensor
    right: torch.Tensor
    wanted: torch.Tensor
    next_entropy: float


def read_example(model: Any, example: Example) -> Reading:
    """Prompt, true answer, then back to the prompt's end for the lookahead."""
    n = len(example.ids)
    prompt = read(model, example.ids, min(MAX_WINDOW, n))
    prompt = prompt._replace(layers=[layer._replace(keys=layer.keys.clone()) for layer in prompt.layers])
    last = prompt.logits[-1:]
    answer = read(model, example.answer, len(example.answer), prompt.cache)
    nll, right = judged(torch.cat([last, answer.logits[:-1]]), example.answer)
    wanted = torch.stack([_attention(layer, n) for layer in answer.layers]).mean(dim=0)
    prompt.cache.crop(n - prompt.cache.get_seq_length())
    seen = look_ahead(model, prompt, LOOKAHEAD - 1)
    chance = last.softmax(dim=-1)
    entropy = float(-(chance * chance.clamp_min(1e-30).log()).sum())
    return Reading(example, seen, nll, right, wanted, entropy)


def read_own(model: Any, tokens: OwnTokens, example: Example) -> Seen:
    """The same prompt as another model reads it, in its own tokens.

    Raises
    ------
    ValueError
        If the prompt has no text.
    """
    if (own := tokens.read(example.ids)) is None:
        raise ValueError(f"prompt {example.number} of {example.task} has no text")
    prompt = read(model, own.ids, min(MAX_WINDOW, len(own.ids)))
    return look_ahead(model, prompt, LOOKAHEAD - 1)._replace(own=own)


def judged(logits: torch.Tensor, answer: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of answer tokens, and whether each is the likeliest, by logits [answer_tokens, vocabulary]."""
    tokens = torch.tensor(answer, device=logits.device)
    nll = -logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    return nll.cpu(), (logits.argmax(dim=-1) == tokens).cpu()


def _attention(layer: LayerReading, n: int) -> torch.Tensor:
    heads = layer.queries.shape[1]
    mass = layer.votes(range(heads), counted=(_IGNORED, n)).mean(dim=0) / heads
    return mass[:n]


def as_ids(tokens: list[int]) -> array:
    """Token ids as the product keeps them."""
    return array("q", tokens)
