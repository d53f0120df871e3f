"""Where answers are computed to prompts that another server prefilled: no draft, no positions, only how many were dropped."""

from array import array
from http import HTTPStatus
from typing import Any

from specprefill_sgl.hooks.decisions import replace_ids
from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.hooks.prefill_side import FIRST_WORD
from specprefill_sgl.request.handover import WORDS, Handover, marked, unpack
from specprefill_sgl.request.options import parse
from specprefill_sgl.request.state import PromptState, attach, sparse_state_of, state_of


def take_over(original: Any, queue: Any, decode_req: Any) -> None:
    """AROUND DecodeTransferQueue._commit_transfer_to_req: what arrived is what the prefill server kept.

    A sparse prompt that cannot be continued keeps its mark, which SGLang refuses.
    """
    req, row, buffers = decode_req.req, decode_req.metadata_buffer_index, queue.metadata_buffers
    config = config_of(queue.scheduler.server_args)
    expected, room = req.bootstrap_room, int(buffers.bootstrap_room[row, 0])
    handed = None
    if room and expected is not None and room in (expected, marked(expected)) and not decode_req.is_rebootstrap:
        handed = unpack(buffers.cached_tokens[row, FIRST_WORD : FIRST_WORD + WORDS].tolist())
    is_sparse = expected is not None and room == marked(expected)
    can_continue = config is not None and handed is not None and handed.kept_tokens < len(req.origin_input_ids)
    if is_sparse and can_continue:
        buffers.bootstrap_room[row, 0] = expected
    original(queue, decode_req)
    if is_sparse and not can_continue:
        _refuse(req, "it runs without --spec-prefill" if config is None else "the prefill server's release is another one")
    elif config is not None and handed is not None:
        options = parse(req.sampling_params.custom_params)
        state = PromptState(options, len(req.origin_input_ids), config.rule, handed.keep, options.method_of(config))
        state.take_over(handed.outcome, handed.kept_tokens)
        attach(req, state)
        if is_sparse:
            _shorten(queue.scheduler, req, handed)


def _shorten(scheduler: Any, req: Any, handed: Handover) -> None:
    """Give back the room of what was dropped. Nothing reads the ids, whose KV is there: only their number counts."""
    page, kept = scheduler.token_to_kv_pool_allocator.page_size, handed.kept_tokens
    begin, end = -(-kept // page) * page, req.kv.kv_allocated_len
    if begin < end:
        scheduler.tree_cache.free_kv_row(req.kv, [(begin, end)])
    req.kv.kv_allocated_len = req.kv.kv_committed_len = req.extend_end = kept
    replace_ids(req, req.origin_input_ids[-kept:])
    req.refresh_fill_ids()


def _refuse(req: Any, why: str) -> None:
    from sglang.srt.disaggregation.utils import prepare_abort

    message = f"The prompt was prefilled by Speculative Prefill, which this server cannot continue: {why}."
    prepare_abort(req, message, status_code=HTTPStatus.INTERNAL_SERVER_ERROR)


def go_dense(_queue: Any, req: Any) -> None:
    """BEFORE DecodePreallocQueue.hold_rebootstrap: new weights read the whole prompt and the answer so far.

    SGLang has put the answer's last token aside.
    """
    state = sparse_state_of(req)
    if state is not None:
        state.backfill(len(req.output_ids) + (req.pd_rebootstrap_forced_output_id is not None))
        replace_ids(req, array("q", req.origin_input_ids_unpadded))


def ask_dense(payload: dict, req: Any) -> None:
    """AFTER Req.build_rebootstrap_payload: it holds none of the request's own fields."""
    if state_of(req) is not None:
        payload["sampling_params"]["custom_params"] = {"spec_prefill": False}
