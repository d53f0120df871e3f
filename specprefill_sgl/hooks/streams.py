"""The CUDA stream the draft uses."""

import contextlib
from collections.abc import Iterator
from typing import Any

from sglang.srt.runtime_context import get_parallel


@contextlib.contextmanager
def forward_stream(scheduler: Any) -> Iterator[None]:
    """The stream forwards run on: runners share input buffers and workspaces, so drafts must not overlap with them.

    The draft's pools are only ever touched on it once the server runs, so what one draft frees the next may take.
    """
    if not scheduler.enable_overlap and get_parallel().pp_size == 1:
        yield
        return
    with scheduler.forward_stream_ctx:
        scheduler.forward_stream.wait_stream(scheduler.schedule_stream)
        yield
