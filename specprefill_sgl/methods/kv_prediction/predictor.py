"""Linear maps from features of an auxiliary model to the target's keys and values, this rank's heads of them."""

from collections.abc import Mapping

import torch

from specprefill_sgl.methods.kv_prediction.predictor_file import About

Maps = tuple[torch.Tensor, torch.Tensor]  # weight [features, numbers], bias [numbers]


class Predictor:
    """Maps of every predicted layer.

    Parameters
    ----------
    about : About
    weights : mapping
        As in the file.
    rank, ranks : int
        Key heads are split over so many, as SGLang splits the target's.
    device : torch.device

    Raises
    ------
    ValueError
        If a layer's maps are missing or have another shape than the target's heads.
    """

    def __init__(self, about: About, weights: Mapping[str, torch.Tensor], rank: int, ranks: int, device: torch.device):
        self._about = about
        self._heads = own_heads(about.kv_heads, rank, ranks)
        self._maps = {layer: self._of(layer, weights, device) for layer in about.predicted}

    def features(self, layer: int) -> int:
        """How many numbers of a token a layer is computed from."""
        return self._maps[layer][0][0].shape[0]

    def predict(self, layer: int, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys without rotary embedding and values of one layer, float32 [tokens, heads, dim], from [tokens, features]."""
        keys, values = (torch.addmm(bias, features, weight) for weight, bias in self._maps[layer])
        return keys.unflatten(1, (-1, self._about.head_dim)), values.unflatten(1, (-1, self._about.value_dim))

    def _of(self, layer: int, weights: Mapping[str, torch.Tensor], device: torch.device) -> tuple[Maps, Maps]:
        keys, values = (
            self._map(f"{kind}.{layer}", weights, dim, device)
            for kind, dim in (("key", self._about.head_dim), ("value", self._about.value_dim))
        )
        return keys, values

    def _map(self, name: str, weights: Mapping[str, torch.Tensor], dim: int, device: torch.device) -> Maps:
        weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
        if weight is None or bias is None or not len(weight) == len(bias) == self._about.kv_heads * dim:
            raise ValueError(f"{name} is missing, or not of {self._about.kv_heads} heads of {dim}")
        own = slice(self._heads.start * dim, self._heads.stop * dim)
        return weight[own].to(device, torch.float32).t().contiguous(), bias[own].to(device, torch.float32)


def own_heads(heads: int, rank: int, ranks: int) -> range:
    """Key heads of one rank; where there are fewer than ranks, neighbours have the same one."""
    each = max(heads // ranks, 1)
    first = rank * heads // ranks
    return range(first, first + each)
