"""Speculative decoding of sparse requests: drafts of several steps find their keys by lengths.

Everything else passes `ForwardBatch.init_new`, where `hooks.model` puts positions right: verified tokens' as well as drafts'.
"""

import functools
import sys
from typing import Any

from specprefill_sgl import compat


def index_by_lengths() -> None:
    """Some attention backends of drafts sum up positions where they mean lengths; a sparse request has fewer keys than that.

    Their classes are mended in this process, those of backends that are loaded: once, whoever builds more of them.
    """
    for path in compat.INDEXED_BY_POSITIONS:
        module, _, name = path.rpartition(".")
        if module in sys.modules:
            backend = getattr(sys.modules[module], name)
            if not hasattr(backend.common_template, "__wrapped__"):
                backend.common_template = _with_lengths(backend.common_template)


def _with_lengths(original: Any) -> Any:
    @functools.wraps(original)
    def common_template(self: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
        positions = forward_batch.positions
        forward_batch.positions = forward_batch.seq_lens.repeat_interleave(self.topk)
        try:
            return original(self, forward_batch, *args, **kwargs)
        finally:
            forward_batch.positions = positions

    return common_template
