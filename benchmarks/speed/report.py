"""Tables of comparisons: ratios within a round, medians over rounds, bootstrap intervals."""

from collections.abc import Callable, Iterable

import numpy as np
from scipy.stats import bootstrap

from benchmarks.speed.measure import STAGES

_ENOUGH = 6


def ratio(row: dict) -> float:
    """How many times faster sparse is."""
    return row["dense"] / row["sparse"]


def bound(row: dict) -> float:
    """How many times faster it could be if only the draft's and the target's own work counted, and the floor once."""
    return row["dense"] / (row["draft_alone"] + row["target_alone"] - row["floor"])


def middle(values: Iterable[float]) -> tuple[float, float, float]:
    """Median over rounds and its 95 % bootstrap interval; of fewer than six rounds, which allow none, the range."""
    data = np.array(list(values))
    low, high = data.min(), data.max()
    if len(data) >= _ENOUGH and low < high:
        low, high = bootstrap((data,), np.median, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(np.median(data)), float(low), float(high)


def summary(rows: Iterable[dict], figure: Callable[[dict], float], digits: int = 2) -> str:
    """`middle` of a figure, as text."""
    median, low, high = middle(figure(row) for row in rows)
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def cells(rows: list[dict]) -> dict[tuple[int, float, int], list[dict]]:
    """Rows by length, keep ratio and batch."""
    found: dict[tuple[int, float, int], list[dict]] = {}
    for row in rows:
        found.setdefault((row["length"], row["keep_ratio"], row["batch"]), []).append(row)
    return dict(sorted(found.items()))


def ratios_table(rows: list[dict]) -> str:
    """Markdown: the speed-up beside its bound."""
    head = (
        "prompt tokens",
        "keep ratio",
        "batch",
        "TTFT dense ms",
        "TTFT sparse ms",
        "dense / sparse",
        "d",
        "p as time",
        "bound",
    )
    head = (*head, "reached", "dense again / dense", "dense with plugin / dense")
    lines = [_line(head), _line(["---"] * len(head))]
    for cell, mine in cells(rows).items():
        lines.append(
            _line(
                (
                    *cell,
                    f"{_median(mine, 'dense'):.0f}",
                    f"{_median(mine, 'sparse'):.0f}",
                    summary(mine, ratio) + "x",
                    summary(mine, lambda row: row["draft_alone"] / row["dense"], 3),
                    summary(mine, lambda row: row["target_alone"] / row["dense"], 3),
                    summary(mine, bound) + "x",
                    summary(mine, lambda row: ratio(row) / bound(row), 3),
                    summary(mine, lambda row: row["dense_again"] / row["dense"], 3),
                    summary(mine, lambda row: row["dense_with_plugin"] / row["dense"], 3),
                )
            )
        )
    return "\n".join(lines)


def stages_table(rows: list[dict]) -> str:
    """Markdown: where the sparse TTFT goes. The target's share is measured alone, so the rest may be below nothing."""
    names = (*STAGES, "target", "floor", "rest")
    lines = [_line(("prompt tokens", "keep ratio", "batch", *names)), _line(["---"] * (len(names) + 3))]
    for cell, mine in cells(rows).items():
        shares = [summary(mine, lambda row, name=name: 100 * parts(row)[name] / row["sparse"], 1) + " %" for name in names]
        lines.append(_line((*cell, *shares)))
    return "\n".join(lines)


def parts(row: dict) -> dict[str, float]:
    """Milliseconds of the sparse TTFT, by stage; they sum to it."""
    known = {**row["stages"], "target": row["target_alone"] - row["floor"], "floor": row["floor"]}
    return {**known, "rest": row["sparse"] - sum(known.values())}


def _median(rows: list[dict], name: str) -> float:
    return float(np.median([row[name] for row in rows]))


def _line(values: Iterable) -> str:
    return "| " + " | ".join(str(value) for value in values) + " |"
