"""The methods' picture, from committed results: `python -m benchmarks.methods_picture` writes docs/pictures/methods.svg.

What an answer costs against how much sooner it begins, a curve per method: SmolLM2, and the shipped pair.
"""

from typing import Any

import numpy as np

from benchmarks.launch import ROOT
from benchmarks.quality import methods as answers
from benchmarks.quality.results import read
from benchmarks.selection import methods as losses
from benchmarks.selection.report import loss_of
from benchmarks.speed.arguments import results
from benchmarks.speed.drawing import errors
from benchmarks.speed.report import middle

PICTURE = ROOT / "docs" / "pictures" / "methods.svg"
_RATIOS = (0.1, 0.2)
# method of the speed bench -> those of the losses and of the answers, and its colour
_METHODS = {
    "draft": (None, "best", "#c8622a"),
    "early-layers": ("early-layers 15", "early_layers_2", "#3d8b80"),
    "lazy": ("lazy 15", "lazy_2", "#7a5aa6"),
    "kv-prediction": (losses.KV_PREDICTION, "kv_prediction_first_2", "#b0892f"),
}
_INK = "#55504a"
Point = tuple[float, float, float]  # with its interval


def main() -> None:
    """Draws two panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"svg.hashsalt": "methods", "svg.fonttype": "path", "font.size": 9}
    with pyplot.rc_context(style | {"axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4))
        _draw(axes[0], "SmolLM2: loss above dense, nats an answer token", "smollm2", _losses())
        _draw(axes[1], "Shipped pair: answers right, %", "shipped", _answers())
        axes[0].invert_yaxis()  # up is better in both
        figure.tight_layout(w_pad=2.5)
        figure.savefig(PICTURE, metadata={"Date": None}, facecolor="white")


def _losses() -> dict[tuple[str, float], Point]:
    rows = read(losses.OUT)
    found: dict[tuple[str, float], Point] = {("dense", 1.0): (0.0, 0.0, 0.0)}
    for name, (method, _, _) in _METHODS.items():
        for ratio in (*_RATIOS, 1.0):
            mine = [row for row in rows if (row["method"], row["keep_ratio"]) == (method, ratio)]
            if mine:
                found[name, ratio] = loss_of(mine)
    return found


def _answers() -> dict[tuple[str, float], Point]:
    """At one keep ratio, tasks alike; of too few prompts for an interval that says anything."""
    recalls = answers.recalls()
    tasks = {task for _, task in recalls}

    def mean(method: str) -> Point:
        value = 100 * float(np.mean([np.mean(recalls[method, task]) for task in tasks]))
        return value, value, value

    found = {(name, answers.KEEP_RATIO): mean(method) for name, (_, method, _) in _METHODS.items() if name != "kv-prediction"}
    return {("dense", 1.0): mean("dense"), ("kv-prediction", 1.0): mean("kv_prediction_first_2"), **found}


def _draw(axis: Any, title: str, pair: str, quality: dict[tuple[str, float], Point]) -> None:
    rows = read(results(f"methods-{pair}"))
    dense = {row["number"]: row["ttft_ms"] for row in rows if row["method"] == "dense"}
    axis.set_title(title, fontsize=9, loc="left")
    for name, colour in {"dense": _INK, **{name: colour for name, (_, _, colour) in _METHODS.items()}}.items():
        ratios = [ratio for method, ratio in quality if method == name]
        mine = [[row for row in rows if (row["method"], row["keep_ratio"]) == (name, ratio)] for ratio in ratios]
        if not all(mine) or not mine:
            continue
        x = [middle(dense[row["number"]] / row["ttft_ms"] for row in some) for some in mine]
        y = [quality[name, ratio] for ratio in ratios]
        how = {"color": colour, "marker": "o", "ms": 4, "lw": 1.4, "elinewidth": 0.8, "label": name}
        axis.errorbar([at for at, _, _ in x], [at for at, _, _ in y], xerr=errors(x), yerr=errors(y), **how)
        for ratio, (at, _, _), (height, _, _) in zip(ratios, x, y, strict=True):
            if ratio < 1:
                axis.annotate(f"{ratio:g}", (at, height), xytext=(4, 4), textcoords="offset points", fontsize=7, color=colour)
    axis.set_xlabel("times sooner than dense: TTFT dense / this")
    axis.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
