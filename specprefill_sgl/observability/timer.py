"""Time that work takes on its device, without waiting for it."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.utils.nvtx_utils import profile_range


class DeviceTimer:
    """Adds up spans: by events on the current stream of an accelerator, by the clock on a CPU.

    Parameters
    ----------
    device : torch.device
    name : str
        Of the spans in SGLang's profiles (`/start_profile`).
    """

    def __init__(self, device: torch.device, name: str):
        self._name = name
        self._module = None if device.type == "cpu" else torch.get_device_module(device)
        self._clock_ms = 0.0
        self._events: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def span(self) -> Iterator[None]:
        """Work queued inside counts, also if it raises."""
        with profile_range(self._name), self._counted():
            yield

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        if self._module is None:
            start = time.perf_counter()
            try:
                yield
            finally:
                self._clock_ms += (time.perf_counter() - start) * 1e3
            return
        first, last = self._module.Event(enable_timing=True), self._module.Event(enable_timing=True)
        first.record()
        try:
            yield
        finally:
            last.record()
            self._events.append((first, last))

    def keep_up(self) -> None:
        """Wait for all spans but the last: else work queues up, and what comes next on the device waits for all of it."""
        if len(self._events) > 1:
            self._events[-2][1].synchronize()

    def total_ms(self) -> float:
        """Milliseconds of all spans; waits for the last one."""
        if self._events:
            self._events[-1][1].synchronize()
        return self._clock_ms + sum(first.elapsed_time(last) for first, last in self._events)
