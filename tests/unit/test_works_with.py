"""The table of what works with Speculative Prefill: each row is on where its option is, and names a test that ran it."""

import argparse
import re
from pathlib import Path

import pytest

from specprefill_sgl import compat
from specprefill_sgl.compat import Status, works_with

_ROOT = Path(__file__).parents[2]

_SPECULATION = ("EAGLE", "EAGLE3", "NGRAM", "STANDALONE")
_WITH_DRAFT = {f"--speculative-algorithm {name}" for name in _SPECULATION}

# row -> a command line that switches it on, and one that does not
COMMAND_LINES = {
    "--attn-dp-size": ("--tp 2 --attn-dp-size 2", ""),
    "--chunked-prefill-size": ("--chunked-prefill-size 512", "--chunked-prefill-size -1"),
    "--disable-overlap-schedule": ("--disable-overlap-schedule", ""),
    "--disable-radix-cache": ("--disable-radix-cache", ""),
    "--disaggregation-mode": ("--disaggregation-mode prefill", ""),
    "--dp-size": ("--dp-size 2", ""),
    "--enable-custom-logit-processor": ("--enable-custom-logit-processor", ""),
    "--enable-hierarchical-cache": ("--enable-hierarchical-cache", ""),
    "--enable-lora": ("--enable-lora --max-lora-rank 8 --lora-target-modules q_proj", ""),
    "--enable-memory-saver": ("--enable-memory-saver --enable-weights-cpu-backup", ""),
    "--enable-metrics": ("--enable-metrics", ""),
    "--enable-mixed-chunk": ("--enable-mixed-chunk", ""),
    "--enable-priority-scheduling": ("--enable-priority-scheduling", ""),
    "--enable-return-hidden-states": ("--enable-return-hidden-states", ""),
    "--enable-streaming-session": ("--enable-streaming-session", ""),
    "--enable-tokenizer-batch-encode": ("--enable-tokenizer-batch-encode", ""),
    "--enable-two-batch-overlap": ("--enable-two-batch-overlap --moe-a2a-backend deepep", ""),
    "--grammar-backend": ("", "--grammar-backend none"),
    "--hicache-storage-backend": ("--enable-hierarchical-cache --hicache-storage-backend file", ""),
    "--kv-events-config": ('--kv-events-config {"publisher":"zmq"}', ""),
    "--max-queued-requests": ("--max-queued-requests 9", ""),
    "--page-size": ("--page-size 16", ""),
    "--pp-size": ("--pp-size 2", ""),
    "--smg-grpc-mode": ("--smg-grpc-mode", ""),
    **{f"--speculative-algorithm {name}": (f"--speculative-algorithm {name}", "") for name in _SPECULATION},
    "--tokenizer-worker-num": ("--tokenizer-worker-num 2", ""),
    "--tp-size": ("--tp 2", ""),
    "overlap schedule": ("", "--disable-overlap-schedule"),
    "radix cache": ("", "--disable-radix-cache"),
}
_WORKING = [row for row in compat.table() if row.status is not Status.REFUSED]


def _names(server_args):
    return {row.option for row in compat.working(server_args)}


@pytest.mark.parametrize("row", _WORKING, ids=lambda row: row.option)
def test_a_row_is_on_where_its_option_is(resolved, row, pair_of, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # else the CPU platform has no speculative decoding
    on, off = COMMAND_LINES[row.option]
    if row.option in _WITH_DRAFT:
        on += f" --speculative-draft-model-path {pair_of('llama')[1]}"
    assert row.option in _names(resolved(on))
    assert row.option not in _names(resolved(off))


def test_the_page_has_the_table():
    assert works_with.markdown() in (_ROOT / "docs" / "options.md").read_text(), works_with.markdown()


def test_rows_are_sorted_and_have_command_lines():
    names = [row.option for row in _WORKING]
    assert names == sorted(names) == list(COMMAND_LINES)


@pytest.mark.parametrize("row", _WORKING, ids=lambda row: row.option)
def test_what_is_said_to_run_is_run_by_a_test(row):
    assert bool(row.shown_by) == (row.status is not Status.NOT_RUN)
    if row.shown_by:
        assert (_ROOT / row.shown_by).is_file()
        assert row.shown_by.startswith("tests/")


def test_flags_are_sglangs():
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = {flag for row in compat.table() for flag in re.findall(r"^--[\w-]+", row.option)}
    assert flags <= parser._option_string_actions.keys()


def test_no_row_is_both():
    """Where a part of an option is refused, the refused row says which."""
    refused = {row.option for row in compat.table() if row.status is Status.REFUSED}
    assert refused.isdisjoint(row.option for row in works_with._WORKING)
