"""What the demo prints: a table, and the document with its kept chunks."""

import os
import sys

from benchmarks.demo.client import Reply

HEADER = ("request", "answer", "prompt tokens", "kept tokens", "draft ms", "TTFT dense s", "TTFT sparse s", "dense / sparse")
_SHOWN_CHARACTERS = 160  # of each end of a dropped stretch


def table(questions: list[tuple[str, str]], pairs: list[tuple[Reply, Reply]], others: dict[str, Reply]) -> str:
    """A row per question asked dense and sparse, and one per other route."""
    rows = [HEADER]
    for (question, _), (dense, sparse) in zip(questions, pairs, strict=True):
        assert dense.ttft_s is not None
        assert sparse.ttft_s is not None
        times = (f"{dense.ttft_s:.3f}", f"{sparse.ttft_s:.3f}", f"{dense.ttft_s / sparse.ttft_s:.2f}x")
        rows.append(_row(f"{question} ...", sparse, *times))
    rows += [_row(name, one, "", f"total {one.total_s:.3f}", "") for name, one in others.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(name: str, reply: Reply, *times: str) -> tuple[str, ...]:
    info = reply.spec_prefill
    return name, reply.text.strip(), str(info["prompt_tokens"]), str(info["kept_tokens"]), f"{info['draft_ms']:.0f}", *times


def highlighted(tokenizer, ids: list[int], positions: list[int]) -> str:
    """The prompt with kept stretches highlighted and long dropped stretches shortened."""
    coloured = sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))
    before, after = ("\033[7m", "\033[0m") if coloured else ("⟦", "⟧")
    kept = set(positions)
    pieces, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (end in kept) != (start in kept):
            text = tokenizer.decode(ids[start:end])
            pieces.append(f"{before}{text}{after}" if start in kept else _shortened(text, end - start))
            start = end
    return "".join(pieces)


def _shortened(text: str, tokens: int) -> str:
    if len(text) <= 3 * _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}\n ... [{tokens} tokens dropped] ...\n{text[-_SHOWN_CHARACTERS:]}"
