"""The README's picture, from committed results: `python -m benchmarks.overview` writes docs/pictures/overview.svg.

Time to first token, right answers and the loss of a real model against the keep ratio, dense beside.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.launch import ROOT
from benchmarks.quality import report
from benchmarks.quality.results import read
from benchmarks.selection.report import loss_of
from benchmarks.speed.drawing import errors
from benchmarks.speed.report import middle

PICTURE = ROOT / "docs" / "pictures" / "overview.svg"
_TTFT = ROOT / "benchmarks" / "speed" / "results" / "ttft-cpu-1-64.jsonl"
_ANSWERS = ROOT / "benchmarks" / "quality" / "results" / "matrix.jsonl"
_LOSSES = ROOT / "benchmarks" / "selection" / "results" / "held_out.jsonl"
_ASKED = {
    "one fact among many": ("single_needle", "multi_key"),
    "through two others": ("variables",),
    "three at once": ("multi_query",),
}
_RULES = {"best, calibrated": "best", "best": "best, no heads", "paper": "paper"}
_TOKENS = 2048  # of the real model's prompts
_RATIOS = (0.1, 0.2)
_DENSE = "dense"
_INK, _WARM, _PALE, _COLD = "#55504a", "#c8622a", "#e8b48f", "#3d8b80"

Point = tuple[float, float, float]  # a mean or median with its interval


def main() -> None:
    """Draws three panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {
        "svg.hashsalt": "overview",
        "svg.fonttype": "path",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with pyplot.rc_context(style | {"axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "text.color": "#23211e"}):
        figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.3))
        _bars(axes[0], "Seconds to the first token, 8,192 tokens", _times())
        _lines(axes[1], "Answers right, %", _answers(), (_WARM, _COLD, _PALE))
        _lines(axes[2], "Loss of a chat model, nats a token", _losses(), (_WARM, _PALE, _INK))
        axes[2].axhline(0, color=_INK, lw=0.8, ls=":")
        for axis in axes:
            axis.set_xlabel("keep ratio", color=_INK)
        figure.tight_layout(w_pad=2.5)
        figure.savefig(PICTURE, metadata={"Date": None}, facecolor="white")


def _times() -> list[Point]:
    rows = read(_TTFT)
    sparse = [[row["sparse"] / 1e3 for row in rows if row["keep_ratio"] == ratio] for ratio in _RATIOS]
    return [middle(values) for values in (*sparse, [row["dense"] / 1e3 for row in rows])]


def _answers() -> dict[str, list[Point]]:
    rows = read(_ANSWERS)

    def point(tasks: Sequence[str], method: str, ratio: float) -> Point:
        right = [
            100.0 * row["right"]
            for row in rows
            if row["task"] in tasks and (row["method"], row["keep_ratio"]) == (method, ratio)
        ]
        return float(np.mean(right)), *report.interval(right)

    return {
        name: [*(point(tasks, "best", ratio) for ratio in _RATIOS), point(tasks, _DENSE, 1.0)] for name, tasks in _ASKED.items()
    }


def _losses() -> dict[str, list[Point]]:
    rows = read(_LOSSES)

    def point(method: str, ratio: float) -> Point:
        return loss_of([row for row in rows if (row["method"], row["keep_ratio"], row["length"]) == (method, ratio, _TOKENS)])

    return {name: [*(point(method, ratio) for ratio in _RATIOS), (0.0, 0.0, 0.0)] for name, method in _RULES.items()}


def _bars(axis: Any, title: str, points: list[Point]) -> None:
    _drawn(axis, title)
    at = range(len(points))
    axis.bar(
        at, [mean for mean, _, _ in points], yerr=errors(points), color=(_WARM, _WARM, _INK), width=0.55, error_kw={"lw": 0.8}
    )
    for x, (mean, _, high) in zip(at, points, strict=True):
        axis.annotate(f"{mean:.1f}", (x, max(mean, high)), xytext=(0, 4), textcoords="offset points", ha="center")


def _lines(axis: Any, title: str, lines: dict[str, list[Point]], colours: Sequence[str]) -> None:
    _drawn(axis, title)
    for number, (name, points) in enumerate(lines.items()):
        x = np.arange(len(points)) + 0.04 * (number - 1)
        means = [mean for mean, _, _ in points]
        axis.errorbar(
            x, means, yerr=errors(points), color=colours[number], marker="o", ms=4, lw=1.6, elinewidth=0.8, label=name
        )
    axis.legend(frameon=False, fontsize=8)


def _drawn(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=9.5, loc="left")
    axis.set_xticks(range(len(_RATIOS) + 1), [*(f"{ratio:g}" for ratio in _RATIOS), _DENSE])


if __name__ == "__main__":
    main()
