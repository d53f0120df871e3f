"""Speculative decoding of sparse requests: drafts of several steps find their keys by lengths.

Everything else passes `ForwardBatch.init_new`, where `hooks.model` puts positions right: verified tokens' as well as drafts'.
"""

import functools
import sys
from typing import Any

from specprefill_sgl import compat
from specprefill_sgl.hooks.launch import config_of


def mend_loaded() -> None:
    """Wrap `common_template` of the attention backends that are loaded in this process: once, whoever builds more of them."""
    for path in compat.INDEXED_BY_POSITIONS:
        module, _, name = path.rpartition(".")
        if module in sys.modules:
            backend = getattr(sys.modules[module], name)
            if not hasattr(backend.common_template, "__wrapped__"):
                backend.common_template = _mended(backend.common_template)


def _mended(original: Any) -> Any:
    @functools.wraps(original)
    def common_template(*args: Any, **kwargs: Any) -> Any:
        return index_by_lengths(original, *args, **kwargs)

    return common_template


def index_by_lengths(original: Any, backend: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND common_template, which sums up positions where it means lengths; a sparse request has fewer keys than that."""
    from sglang.srt.runtime_context import get_server_args

    if config_of(get_server_args()) is None:
        return original(backend, forward_batch, *args, **kwargs)
    positions = forward_batch.positions
    forward_batch.positions = forward_batch.seq_lens.repeat_interleave(backend.topk)
    try:
        return original(backend, forward_batch, *args, **kwargs)
    finally:
        forward_batch.positions = positions
