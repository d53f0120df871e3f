"""Where prompts are prefilled for another server to answer: it prepared for the whole prompt and gets the kept tokens."""

from typing import Any

import torch

from specprefill_sgl.request.handover import WORDS, marked, pack
from specprefill_sgl.request.state import sparse_state_of, state_of

FIRST_WORD = 7  # of the row of `MetadataBuffers.cached_tokens`, where SGLang says that 7 to 15 are spare


def announce(scheduler: Any, req: Any) -> None:
    """A request became sparse: so many pages are sent. Where the other server is not ready yet, SGLang counts them itself."""
    sender = req.disagg_kv_sender
    if sender is not None and not req.pending_bootstrap:
        pages = scheduler.disagg_prefill_bootstrap_queue._num_pages_to_send(req, req.disagg_decode_prefix_len)
        sender.init(pages, req.metadata_buffer_index)


def hand_over(_result: Any, buffers: Any, req: Any, *_args: Any) -> None:
    """AFTER MetadataBuffers.set_buf: what was decided, beside what SGLang says of the request's cached tokens."""
    row = req.metadata_buffer_index
    buffers.cached_tokens[row, FIRST_WORD : FIRST_WORD + WORDS] = torch.tensor(pack(state_of(req)), dtype=torch.int32)
    if sparse_state_of(req) is not None:
        buffers.bootstrap_room[row, 0] = marked(int(buffers.bootstrap_room[row, 0]))
