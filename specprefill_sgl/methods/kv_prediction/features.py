"""What a predictor computes from: keys without rotary embedding and values of a draft, or what leaves the first layers."""

from collections.abc import Iterable
from typing import Any

import torch

from specprefill_sgl.methods.kv_prediction.attention import Layer, layers
from specprefill_sgl.methods.kv_prediction.predictor_file import Source
from specprefill_sgl.methods.kv_prediction.rope import derotate
from specprefill_sgl.models.ranks import Ranks


class Features:
    """Reads the pools of an auxiliary model; the same in training and in service.

    Parameters
    ----------
    runner : ModelRunner
        The auxiliary model's; an `ExitRunner` for the target's first layers.
    ranks : Ranks
        That its heads are split over.
    """

    def __init__(self, runner: Any, ranks: Ranks):
        self._runner, self._ranks = runner, ranks
        self.layers = layers(runner.model)

    def of(self, sources: Iterable[Source], slots: torch.Tensor, positions: torch.Tensor) -> dict[Source, torch.Tensor]:
        """Of some tokens, float32 [tokens, numbers] for each source.

        Parameters
        ----------
        sources : iterable of tuple of int
            Layers of the draft, keys before values, layer after layer; empty: what leaves the first layers.
        slots, positions : int64 [tokens]
        """
        wanted = dict.fromkeys(sources)
        read = {number: self._layer(number, slots, positions) for number in sorted({n for source in wanted for n in source})}
        return {
            source: torch.cat([read[number] for number in source], dim=1) if source else self._runner.exits[slots].float()
            for source in wanted
        }

    def copied(self, number: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer as they lie in its pool, this rank's heads."""
        pool, number = self._runner.token_to_kv_pool, self.layers[number].attention.layer_id
        return pool.get_key_buffer(number)[slots], pool.get_value_buffer(number)[slots]

    def _layer(self, number: int, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        keys, values = plain(self._runner, self.layers[number], slots, positions)
        return torch.cat([self._ranks.gathered(one).flatten(1) for one in (keys, values)], dim=1)


def plain(runner: Any, layer: Layer, slots: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys without rotary embedding, and values, of one layer: float32 [tokens, heads, dim], this rank's heads."""
    pool, number = runner.token_to_kv_pool, layer.attention.layer_id
    keys = derotate(pool.get_key_buffer(number)[slots], positions, layer.rotary)
    return keys, pool.get_value_buffer(number)[slots].float()
