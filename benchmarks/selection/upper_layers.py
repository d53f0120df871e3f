"""What the true answer costs where only the upper layers see less of a prompt: the methods lazy and kv-prediction.

Below, all is exact. So what enters the upper layers comes from one dense forward of the prompt and its answer, and only these
layers are run again: over what is kept, beside predicted keys and values of other tokens if there are any.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.selection.examples import Example
from benchmarks.selection.reading import judged
from specprefill_sgl.methods.kv_prediction.predictor import Predictor

TAIL = 32  # tokens at the end of a prompt that kv-prediction really prefills, as `--spec-prefill-tail` by default


class Entered(NamedTuple):
    """A prompt and its answer, but for the answer's last token, on their way.

    Attributes
    ----------
    first : int
        The first of the upper layers.
    hidden : [tokens, hidden_size]
        What enters it.
    """

    first: int
    hidden: torch.Tensor


@torch.no_grad()
def entered(model: Any, example: Example, layers: tuple[int, ...]) -> dict[int, Entered]:
    """Of each layer, by one forward."""
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([[*example.ids, *example.answer[:-1]]], device=model.device)
    states = model.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    return {layer: Entered(layer, states[layer][0]) for layer in layers}


@torch.no_grad()
def answer(
    model: Any, example: Example, below: Entered, kept: np.ndarray, predictor: Predictor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of the answer's tokens, and whether each is the likeliest.

    Parameters
    ----------
    model : LlamaForCausalLM
    example : Example
    below : Entered
    kept : int64 [kept]
        Prompt positions that the upper layers read, ascending, the last one among them.
    predictor : Predictor, optional
        Says the upper layers' keys and values of all other prompt tokens; without it they are gone.
    """
    n = len(example.ids)
    read = torch.from_numpy(np.concatenate([kept, np.arange(n, len(below.hidden))])).to(model.device)
    others = np.setdiff1d(np.arange(n), kept) if predictor is not None else np.arange(0)
    cache = DynamicCache()
    if predictor is not None:
        _predict(model, below, torch.from_numpy(others).to(model.device), predictor, cache)
    keys = torch.cat([torch.from_numpy(others).to(model.device), read])
    mask = (keys[None] <= read[:, None])[None, None]
    hidden = below.hidden[read][None]
    how = {"attention_mask": mask, "position_ids": read[None], "position_embeddings": _rotary(model, hidden, read)}
    for layer in model.model.layers[below.first :]:
        hidden = layer(hidden, past_key_values=cache, use_cache=True, **how)
    logits = model.lm_head(model.model.norm(hidden[:, -len(example.answer) :]))[0].float()
    return judged(logits, example.answer)


def _predict(model: Any, below: Entered, positions: torch.Tensor, predictor: Predictor, cache: DynamicCache) -> None:
    features = model.model.norm(below.hidden[positions]).float()  # what the server's auxiliary model remembers
    cos, sin = _rotary(model, below.hidden.float(), positions)
    for number in range(below.first, model.config.num_hidden_layers):
        keys, values = (one.transpose(0, 1)[None] for one in predictor.predict(number, features))
        keys, _ = apply_rotary_pos_emb(keys, keys, cos, sin)
        cache.update(keys.to(model.dtype), values.to(model.dtype), number)


def _rotary(model: Any, like: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return model.model.rotary_emb(like, position_ids=positions[None])
