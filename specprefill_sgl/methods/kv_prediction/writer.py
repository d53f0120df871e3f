"""Predicted KV of a prompt, from an auxiliary model's pools into slots of the target's."""

from collections.abc import Mapping
from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from specprefill_sgl.methods.kv_prediction import attention
from specprefill_sgl.methods.kv_prediction.features import Features
from specprefill_sgl.methods.kv_prediction.predictor import Predictor
from specprefill_sgl.methods.kv_prediction.predictor_file import About
from specprefill_sgl.methods.kv_prediction.rope import rotate
from specprefill_sgl.models.ranks import Ranks

_TOKENS = 2048  # predicted at a time: features are float32


class Writer:
    """Computes keys and values and writes them where SGLang's own attention would.

    Parameters
    ----------
    target : ModelRunner
    about : About
    weights : mapping
        Of the predictor's file.
    features : Features
        Of the auxiliary model.
    ranks : Ranks

    Raises
    ------
    ValueError
        If target, draft and predictor do not fit together.
    """

    def __init__(self, target: Any, about: About, weights: Mapping[str, torch.Tensor], features: Features, ranks: Ranks):
        self._target, self._about, self._features = target, about, features
        self._layers = attention.layers(target.model)
        if len(self._layers) != about.layers + len(about.sources):
            raise ValueError(f"it is of a target with {about.layers + len(about.sources)} layers, not {len(self._layers)}")
        self._predictor = Predictor(about, weights, ranks.rank, ranks.size, torch.device(target.device))
        unknown = {n for source in about.sources for n in source} - set(range(len(features.layers)))
        if unknown:
            raise ValueError(f"the draft has no layer {min(unknown)}")

    def write(self, slots: torch.Tensor, first: int, to: torch.Tensor) -> None:
        """Fill slots of the target's pool.

        Parameters
        ----------
        slots : int64 [tokens]
            Of the prompt's tokens in the auxiliary pool.
        first : int
            Position of the first token to write.
        to : int64 [tokens]
            Slots in the target's pool, of the tokens from there on.
        """
        for part, own in zip(to.split(_TOKENS), slots[first : first + len(to)].split(_TOKENS), strict=True):
            self._write(own, torch.arange(first, first + len(own), device=own.device), KVWriteLoc(part))
            first += len(own)

    def _write(self, slots: torch.Tensor, positions: torch.Tensor, to: KVWriteLoc) -> None:
        features = self._features.of(self._about.sources, slots, positions)
        for number, layer in enumerate(self._layers):
            if number < self._about.layers:
                keys, values = self._features.copied(number, slots)
            else:
                source = self._about.sources[number - self._about.layers]
                keys, values = self._predictor.predict(number, features[source])
                keys = rotate(keys, positions, layer.rotary)
            self._target.token_to_kv_pool.set_kv_buffer(layer.attention, to, keys, values)
