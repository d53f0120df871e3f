"""Where a model's layers are, and copies of modules that share their parameters."""

from typing import Any

from torch import nn

_PATHS = (("model",), ("language_model", "model"), ("model", "language_model"), ("backbone",))


def path_to_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules on the way to the one that has the layers.

    Raises
    ------
    ValueError
        If its layers are not where this function looks.
    """
    for path in _PATHS:
        if isinstance(getattr(_at(model, path), "layers", None), nn.ModuleList):
            return path
    raise ValueError(f"the layers of {type(model).__name__} are not where they are looked for")


def holder_of(model: nn.Module) -> Any:
    """The module that has the layers; ValueError as `path_to_layers`."""
    return _at(model, path_to_layers(model))


def shallow(module: nn.Module) -> Any:
    """The same module with a table of children of its own; `copy.copy` would share it."""
    view = object.__new__(type(module))
    view.__dict__ = dict(module.__dict__)
    view._modules = dict(module._modules)
    return view


def _at(module: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        module = getattr(module, name, None)
    return module
