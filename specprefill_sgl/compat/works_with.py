"""What of SGLang's options works with Speculative Prefill, how far that was run, and what is refused: one table.

`check` prints the rows that are on; whoever writes about an option writes it here. Rows are in alphabetical order.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

from specprefill_sgl.compat.options import SPECULATION, refused_options


class Status(StrEnum):
    """How far a combination was run: on real servers without a GPU, with the GPU's kernels interpreted, not at all."""

    CPU = "run on CPU"
    INTERPRETER = "run in the interpreter"
    NOT_RUN = "not run"
    REFUSED = "refused"


class Row(NamedTuple):
    """An option beside Speculative Prefill.

    Attributes
    ----------
    option : str
        As a user types it; what is on by default is named in words.
    is_on : callable
        Whether it is on, of a ServerArgs' resolved options.
    status : Status
    note : str
        What to know: limits, or why it is refused.
    shown_by : str
        The test that ran it, as a path in the repository.
    """

    option: str
    is_on: Callable[[Any], bool]
    status: Status
    note: str = ""
    shown_by: str = ""


_CPU, _INTERPRETER, _NOT_RUN = Status.CPU, Status.INTERPRETER, Status.NOT_RUN
_OF_SPECULATION = {
    "EAGLE": "without overlap; of MTP (NEXTN), which is this too, no model was run",
    "EAGLE3": "without overlap",
    "NGRAM": "without overlap; it drafts from the whole prompt",
    "STANDALONE": "without overlap; one draft for both, loaded once: either path is enough",
}


def _speculates(algorithm: str) -> Callable[[Any], bool]:
    return lambda a: a.speculative_algorithm == algorithm


_WORKING = (
    Row(
        "--attn-dp-size",
        lambda a: a.attn_dp_size > 1,
        _CPU,
        "a draft for each attention group; a conversation is continued where its group answers it; Qwen targets",
        "tests/e2e/test_data_parallel_attention.py",
    ),
    Row("--chunked-prefill-size", lambda a: a.chunked_prefill_size > 0, _CPU, "", "tests/e2e/test_scheduling.py"),
    Row("--disable-overlap-schedule", lambda a: a.disable_overlap_schedule, _CPU, "", "tests/e2e/test_scheduling.py"),
    Row(
        "--disable-radix-cache",
        lambda a: a.disable_radix_cache,
        _CPU,
        "every turn is selected afresh, nothing returns, nothing is backfilled",
        "tests/e2e/test_multi_turn.py",
    ),
    Row(
        "--disaggregation-mode",
        lambda a: a.disaggregation_mode != "null",
        _CPU,
        "Mooncake over TCP; both servers need --spec-prefill, the prefill server the draft",
        "tests/e2e/test_disaggregation.py",
    ),
    Row("--dp-size", lambda a: a.dp_size > 1, _CPU, "a draft for each replica", "tests/e2e/test_soak.py"),
    Row(
        "--enable-custom-logit-processor",
        lambda a: a.enable_custom_logit_processor,
        _CPU,
        "requests that have one are dense",
        "tests/e2e/test_features.py",
    ),
    Row(
        "--enable-hierarchical-cache",
        lambda a: a.enable_hierarchical_cache,
        _CPU,
        "one rank; what lies in host memory is kept for free",
        "tests/e2e/test_host_cache.py",
    ),
    Row("--enable-lora", lambda a: a.enable_lora, _NOT_RUN, "refused with --spec-prefill-method early-layers"),
    Row(
        "--enable-memory-saver",
        lambda a: a.enable_memory_saver,
        _NOT_RUN,
        "with --enable-weights-cpu-backup or --enable-draft-weights-cpu-backup, or the draft's weights would not come back",
    ),
    Row("--enable-metrics", lambda a: a.enable_metrics, _CPU, "", "tests/e2e/test_observability.py"),
    Row("--enable-mixed-chunk", lambda a: a.enable_mixed_chunk, _CPU, "", "tests/e2e/test_scheduling.py"),
    Row("--enable-priority-scheduling", lambda a: a.enable_priority_scheduling, _CPU, "", "tests/e2e/test_scheduling.py"),
    Row(
        "--enable-return-hidden-states",
        lambda a: a.enable_return_hidden_states,
        _CPU,
        "requests that ask for them are dense",
        "tests/e2e/test_features.py",
    ),
    Row(
        "--enable-streaming-session",
        lambda a: a.enable_streaming_session,
        _CPU,
        "requests of a session are dense",
        "tests/e2e/test_sessions_and_events.py",
    ),
    Row(
        "--enable-tokenizer-batch-encode",
        lambda a: a.enable_tokenizer_batch_encode,
        _CPU,
        "",
        "tests/e2e/test_draft_tokenizer.py",
    ),
    Row(
        "--enable-two-batch-overlap",
        lambda a: a.enable_two_batch_overlap,
        _NOT_RUN,
        "it splits batches whose positions are offset already; refused with --spec-prefill-method early-layers",
    ),
    Row(
        "--grammar-backend",
        lambda a: a.grammar_backend not in (None, "none"),
        _CPU,
        "a constrained request is drafted once it has its grammar",
        "tests/e2e/test_features.py",
    ),
    Row(
        "--hicache-storage-backend",
        lambda a: a.hicache_storage_backend is not None,
        _CPU,
        "files; other storages share their code and were not run",
        "tests/e2e/test_host_cache.py",
    ),
    Row(
        "--kv-events-config",
        lambda a: a.kv_events_config is not None,
        _CPU,
        "subscribers hear of the blocks that plain prompts can share",
        "tests/e2e/test_sessions_and_events.py",
    ),
    Row(
        "--max-queued-requests",
        lambda a: a.max_queued_requests is not None,
        _CPU,
        "at least 2 where running requests go back to the queue: revival, backfill for the rest of an answer",
        "tests/e2e/test_revival.py",
    ),
    Row(
        "--page-size",
        lambda a: a.page_size > 1,
        _CPU,
        "readers with recurrent layers then read every prompt anew",
        "tests/e2e/test_scheduling.py",
    ),
    Row(
        "--pp-size",
        lambda a: a.pp_size > 1,
        _CPU,
        "two stages; the first one drafts; not with revival, backfill, early-layers, speculative decoding",
        "tests/e2e/test_pipeline_parallel.py",
    ),
    Row(
        "--smg-grpc-mode",
        lambda a: a.smg_grpc_mode,
        _CPU,
        "its front end checks no fields: requests with bad ones are aborted; its replies do not say what was done",
        "tests/e2e/test_grpc.py",
    ),
    *(
        Row(
            f"--speculative-algorithm {name}",
            _speculates(name),
            _INTERPRETER,
            _OF_SPECULATION[name],
            "tests/e2e/test_speculation.py",
        )
        for name in sorted(SPECULATION)
    ),
    Row(
        "--tokenizer-worker-num",
        lambda a: a.tokenizer_worker_num > 1,
        _CPU,
        "",
        "tests/e2e/test_tokenizer_workers.py",
    ),
    Row(
        "--tp-size",
        lambda a: a.tp_size > 1,
        _CPU,
        "two ranks; the draft is divided as the target is",
        "tests/e2e/test_scheduling.py",
    ),
    Row("overlap schedule", lambda a: not a.disable_overlap_schedule, _CPU, "", "tests/e2e/test_interleaving.py"),
    Row("radix cache", lambda a: not a.disable_radix_cache, _CPU, "", "tests/e2e/test_radix_cache.py"),
)


def table() -> tuple[Row, ...]:
    """What works, then what is refused."""
    return (*_WORKING, *(Row(name, is_on, Status.REFUSED, why) for name, is_on, why in refused_options()))


def working(server_args: Any) -> list[Row]:
    """The rows of what works that are on in a server."""
    from sglang.srt.arg_groups.overrides import resolving_view

    args = resolving_view(server_args)
    refused = {name for name, _, _ in refused_options()}  # in this release
    return [row for row in _WORKING if row.option not in refused and row.is_on(args)]


def markdown() -> str:
    """The rows of what works, as docs/options.md has them."""
    rows = (f"| {_code(row.option)} | {row.status} | {row.note} |" for row in _WORKING)
    return "\n".join(("| SGLang's option | how far | |", "|---|---|---|", *rows))


def _code(option: str) -> str:
    return f"`{option}`" if option.startswith("-") else option
