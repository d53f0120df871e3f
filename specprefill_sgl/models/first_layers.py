"""The first layers of a loaded model, or all of them, as a model of their own: the same weights, nothing of it is changed."""

from typing import Any

from torch import nn

from specprefill_sgl.models.layers import path_to_layers, shallow
from specprefill_sgl.models.runner import PrivateRunner


def first_layers(model: nn.Module, count: int) -> nn.Module:
    """A view of a causal language model that ends after `count` layers: same parameters, module tables of its own.

    Raises
    ------
    ValueError
        If its layers are not where this function looks.
    """
    outer = shallow(model)
    holder = outer
    for name in path_to_layers(model):
        inner = shallow(getattr(holder, name))
        holder._modules[name] = inner
        holder = inner
    holder._modules["layers"] = shallow(holder.layers)
    holder._modules["layers"]._modules = dict(list(holder.layers._modules.items())[:count])
    for name in ("end_layer", "_end_layer"):  # where the first is a property it reads the second
        if name in vars(holder):
            setattr(holder, name, count)
    return outer


class BorrowingRunner(PrivateRunner):
    """Runs the first layers of another runner's model, with pools of its own.

    Parameters
    ----------
    lender : ModelRunner
        Its weights are loaded.
    layers : int
    **settings
        As `ModelRunner`'s.
    """

    def __init__(self, *, lender: Any, layers: int, **settings: Any):
        self._lender, self._layers = lender, layers
        super().__init__(**settings)

    def load_model(self) -> None:
        """Nothing is loaded."""
        self.model = first_layers(self._lender.model, self._layers)
        for name in ("loader", "load_config", "sliding_window_size", "prefill_aware_swa", "dtype"):
            setattr(self, name, getattr(self._lender, name))
        self.startup_weight_load = None
        self.weight_load_mem_usage = self.weight_load_time = 0
