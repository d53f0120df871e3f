"""A batch as the later parts of the layers see it: other rows of the request table, other lengths, fewer tokens."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode


class Piece(NamedTuple):
    """What one request sends through a part of the layers in an extend.

    Attributes
    ----------
    above : int
        How many rows its row of that part lies behind its own.
    prefix : int
        Tokens of it that are in these layers already.
    positions, slots : int64 [tokens]
    hidden : [tokens, hidden_size]
    """

    above: int
    prefix: int
    positions: torch.Tensor
    slots: torch.Tensor
    hidden: torch.Tensor


def extended(batch: Any, pieces: Sequence[Piece], rows: torch.Tensor | None = None) -> Any:
    """The extend of these pieces, one of each request of `batch`; or of some requests of a decode, whose `rows` are given."""
    device = batch.seq_lens.device
    lengths = [len(piece.positions) for piece in pieces]
    prefixes = [piece.prefix for piece in pieces]
    ends = [prefix + length for prefix, length in zip(prefixes, lengths, strict=True)]
    starts = list(itertools.accumulate(lengths, initial=0))[:-1]
    own = batch.req_pool_indices if rows is None else rows
    mode = {} if rows is None else _extend_of_a_decode(len(pieces))
    return replace(
        batch,
        # nothing above the embedding reads ids
        input_ids=torch.zeros(sum(lengths), dtype=batch.input_ids.dtype, device=device),
        positions=torch.cat([piece.positions for piece in pieces]),
        out_cache_loc=torch.cat([piece.slots for piece in pieces]),
        req_pool_indices=own + _on(device, [piece.above for piece in pieces], own.dtype),
        req_pool_indices_cpu=None,
        seq_lens=_on(device, ends, batch.seq_lens.dtype),
        seq_lens_cpu=torch.tensor(ends, dtype=torch.int64),
        seq_lens_sum=sum(ends),
        orig_seq_lens=None if batch.orig_seq_lens is None else _on(device, ends, batch.orig_seq_lens.dtype),
        extend_num_tokens=sum(lengths),
        extend_seq_lens=_on(device, lengths, torch.int32),
        extend_seq_lens_cpu=lengths,
        extend_prefix_lens=_on(device, prefixes, torch.int32),
        extend_prefix_lens_cpu=prefixes,
        extend_start_loc=_on(device, starts, torch.int32),
        extend_logprob_start_lens_cpu=_logprob_starts(batch, lengths),
        global_num_token_non_padded_cpu=sum(lengths),
        global_num_token_non_padded=_like(batch.global_num_token_non_padded, sum(lengths)),
        **mode,
    )


def decoded(batch: Any, above: Sequence[int], dropped: Sequence[int]) -> Any:
    """A decode where each request has another row, so many behind its own, and so many tokens less."""
    device = batch.seq_lens.device
    return replace(
        batch,
        req_pool_indices=batch.req_pool_indices + _on(device, above, batch.req_pool_indices.dtype),
        req_pool_indices_cpu=None,
        seq_lens=batch.seq_lens - _on(device, dropped, batch.seq_lens.dtype),
        seq_lens_cpu=None if batch.seq_lens_cpu is None else batch.seq_lens_cpu - torch.tensor(dropped),
        seq_lens_sum=None if batch.seq_lens_sum is None else batch.seq_lens_sum - sum(dropped),
    )


def _extend_of_a_decode(n: int) -> dict[str, Any]:
    return {"forward_mode": ForwardMode.EXTEND, "batch_size": n, "return_logprob": False, "is_extend_in_batch": True}


def _logprob_starts(batch: Any, lengths: Sequence[int]) -> list[int] | None:
    """Input logprobs are of the last tokens of an extend: of requests that lost tokens, none."""
    if batch.extend_logprob_start_lens_cpu is None:
        return None
    before = zip(batch.extend_seq_lens_cpu, batch.extend_logprob_start_lens_cpu, strict=True)
    return [max(now - (length - start), 0) for now, (length, start) in zip(lengths, before, strict=True)]


def _on(device: torch.device, numbers: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


def _like(tensor: torch.Tensor | None, value: int) -> torch.Tensor | None:
    return None if tensor is None else torch.full_like(tensor, value)
