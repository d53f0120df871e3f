"""What the model is fed: plain token ids and original positions (docs/how-it-works.md, 6)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sglang.srt.utils import is_pin_memory_available

from specprefill_sgl.hooks.penalties import count_again
from specprefill_sgl.request.skipcode import TOKEN_MASK
from specprefill_sgl.request.state import PromptState, sparse_state_of


def mask_ids(_result: Any, batch: Any, *_args: Any) -> None:
    """AFTER ScheduleBatch.prepare_for_extend: take the skips off the ids; the array is the batch's own copy."""
    count_again(batch)
    if any(sparse_state_of(req) is not None for req in batch.reqs):
        batch.prefill_input_ids_cpu.bitwise_and_(TOKEN_MASK)


def mask_penalized_ids(orchestrator: Any, output_ids: torch.Tensor) -> Any:
    """BEFORE BatchedPenalizerOrchestrator.cumulate_output_tokens.

    Under the overlap schedule SGLang counts the prompt's last id on a request's first decode; it may be coded.
    """
    batch = orchestrator.batch
    if batch is not None and any(sparse_state_of(req) is not None and not req.output_ids for req in batch.reqs):
        return (orchestrator, output_ids & TOKEN_MASK), {}
    return None


def offset_positions(forward_batch: Any, _cls: type, batch: Any, *_args: Any, **_kwargs: Any) -> Any:
    """AFTER ForwardBatch.init_new: positions become original positions, in a new tensor since the old one may be shared."""
    states = [sparse_state_of(req) for req in batch.reqs or ()]
    if not any(states):
        return None
    positions = forward_batch.positions
    mode = batch.forward_mode
    if mode.is_decode_or_idle() or mode.is_target_verify() or mode.is_draft_extend_v2():
        offsets = _behind_prompts(states, len(positions), speculative=not batch.spec_algorithm.is_none())
    else:
        offsets = np.concatenate(
            [
                state.span_offsets(start, length) if state else np.zeros(length, dtype=np.int64)
                for state, start, length in zip(states, batch.prefix_lens, batch.extend_lens, strict=True)
            ]
        )
    host = torch.from_numpy(offsets)
    if is_pin_memory_available(positions.device):
        host = host.pin_memory()  # a pageable copy would wait for the forward in flight
    shift = host.to(device=positions.device, dtype=positions.dtype, non_blocking=True)
    forward_batch.positions = positions + shift
    if forward_batch.mrope_positions is not None:  # text-only rows of a multimodal model
        forward_batch.mrope_positions = forward_batch.mrope_positions + shift
    return forward_batch


def _behind_prompts(states: Sequence[PromptState | None], n_tokens: int, *, speculative: bool) -> np.ndarray:
    """Offsets of tokens that follow prompts: a token of each request, or of speculative decoding as many of each, by request.

    Beam search adds tokens at the end, of dense requests.
    """
    of_requests = np.array([state.delta if state else 0 for state in states], dtype=np.int64)
    if speculative:
        return of_requests.repeat(n_tokens // len(states))
    return np.pad(of_requests, (0, n_tokens - len(states)))


def plain_next_token(original: Any, chunked_req: Any, vocab_size: int) -> int | None:
    """AROUND schedule_batch._compute_chunked_req_next_prompt_token: what follows a chunk, which a speculative draft reads.

    SGLang takes a coded id for a placeholder that no model knows.
    """
    if (
        chunked_req is None
        or sparse_state_of(chunked_req) is None
        or chunked_req.extend_end >= len(chunked_req.origin_input_ids)
    ):
        return original(chunked_req, vocab_size)
    return int(chunked_req.origin_input_ids[chunked_req.extend_end] & TOKEN_MASK)
