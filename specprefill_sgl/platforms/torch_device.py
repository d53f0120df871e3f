"""What SGLang asks of torch as if there were an accelerator, where there is none: two calls that otherwise raise."""

import functools
from types import ModuleType

import torch


def register() -> None:
    """Answer them in this process. Calls that work without are left as they are, and so is every call beside an accelerator."""
    if torch.accelerator.is_available():
        return
    torch.Tensor.pin_memory = _pin_memory  # type: ignore[method-assign]
    torch.get_device_module = _get_device_module


def _pin_memory(self: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """Itself: nothing copies from pinned memory (SGLang pins the mask of recurrent states in each decode)."""
    return self


_of_device = torch.get_device_module


@functools.wraps(_of_device)
def _get_device_module(device: torch.device | str | None = None) -> ModuleType:
    """`torch.cpu` for the current device, where torch says `torch.cuda` (SGLang's Qwen3-Next makes its norms there)."""
    return _of_device("cpu" if device is None else device)
