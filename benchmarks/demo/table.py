"""What the demo prints: a table, and the document with its kept chunks."""

import os
import sys
from statistics import median

from benchmarks.demo.client import Timed

HEADER = ("route", "prompt tokens", "kept tokens", "draft ms", "TTFT dense s", "TTFT sparse s", "dense / sparse")
_SHOWN_CHARACTERS = 160  # of each end of a dropped stretch


def table(dense: list[Timed], sparse: list[Timed], others: dict[str, Timed]) -> str:
    """Rows per route; TTFTs are medians of the same run."""
    dense_s, sparse_s = (median(one.ttft_s or 0.0 for one in runs) for runs in (dense, sparse))
    info = sparse[0].spec_prefill
    draft_ms = median(one.spec_prefill["draft_ms"] for one in sparse)
    rows = [HEADER, _row("/generate", info, draft_ms, f"{dense_s:.3f}", f"{sparse_s:.3f}", f"{dense_s / sparse_s:.2f}x")]
    for name, one in others.items():
        rows.append(_row(name, one.spec_prefill, one.spec_prefill["draft_ms"], "", f"total {one.total_s:.3f}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(route: str, info: dict, draft_ms: float, *rest: str) -> tuple[str, ...]:
    return route, str(info["prompt_tokens"]), str(info["kept_tokens"]), f"{draft_ms:.0f}", *rest


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
