"""Chunks that end no prompt are read for their keys: what follows the last layer's keys is not computed (issue Readers, 3)."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.model_executor.runner_utils.capture_mode import get_is_capture_mode
from sglang.srt.runtime_context import get_forward
from torch import nn

from specprefill_sgl.models.layers import holder_of, shallow


def skip_what_follows(model: nn.Module, is_keys_only: Callable[[], bool]) -> None:
    """From now on the last layer's MLP and output projection answer zeros while `is_keys_only()`.

    Nothing but the last norm reads them, and in such a forward nobody reads that. All ranks skip alike, so no collective waits.
    The modules that change are copies with the same parameters: another view of the model keeps its own.

    Parameters
    ----------
    model : Module
        Whose layers are where `holder_of` looks; any other is left as it is.
    is_keys_only : callable
        Asked in each forward, but not while a CUDA graph is captured: a graph computes everything.
    """
    try:
        table = holder_of(model).layers
    except ValueError:
        return
    name = next(reversed(table._modules))
    layer = table._modules[name] = shallow(table._modules[name])
    for path in (("mlp",), ("self_attn", "o_proj")):
        parent = layer
        for step in path:
            if not isinstance(getattr(parent, step, None), nn.Module):
                break
            parent._modules[step] = parent = shallow(getattr(parent, step))
        else:
            zeros = _hidden if path == ("mlp",) else _projected
            parent.forward = functools.partial(_forward, parent, zeros, is_keys_only)


def _forward(module: Any, zeros: Callable, is_keys_only: Callable[[], bool], *args: Any, **kwargs: Any) -> Any:
    if is_keys_only() and not get_is_capture_mode() and _is_plain(args[0]):
        return zeros(module, *args)
    return type(module).forward(module, *args, **kwargs)


def _is_plain(states: Any) -> bool:
    """Whether the answer is a row like it for each of its rows: not of quantized rows, nor of rows that ranks share."""
    return torch.is_tensor(states) and states.is_floating_point() and states.itemsize > 1 and not get_forward().sp_active


def _hidden(_module: Any, hidden_states: torch.Tensor, *_args: Any) -> torch.Tensor:
    return torch.zeros_like(hidden_states)


def _projected(module: Any, attended: torch.Tensor, *_args: Any) -> tuple[torch.Tensor, None]:
    return attended.new_zeros(*attended.shape[:-1], module.output_size), None
