"""Pictures of docs/recovery.md and docs/pipeline.md, from committed rows: `python -m benchmarks.speed.pictures`."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.launch import ROOT
from benchmarks.quality.results import read
from benchmarks.speed.arguments import results

_PICTURES = ROOT / "docs" / "pictures"
_INK, _WARM, _PALE = "#55504a", "#c8622a", "#e8b48f"


def main() -> None:
    """Draws both."""
    with _figure("recovery", 2) as axes:
        _recovery(axes[0], "SmolLM2, 48 tokens out", read(results("recovery-smollm2")))
        _recovery(axes[1], "Shipped pair, 32 tokens out", read(results("recovery-shipped")))
    with _figure("pipeline", 1) as (axis,):
        _pipeline(axis, read(results("pipeline-cpu-1-64")))


@contextlib.contextmanager
def _figure(name: str, panels: int) -> Iterator[Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"svg.hashsalt": name, "svg.fonttype": "path", "font.size": 9, "text.color": "#23211e"}
    with pyplot.rc_context(style | {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _INK}):
        figure, axes = pyplot.subplots(1, panels, figsize=(9, 3), squeeze=False)
        yield axes[0]
        figure.tight_layout(w_pad=2.5)
        figure.savefig(_PICTURES / f"{name}.svg", metadata={"Date": None}, facecolor="white")


def _recovery(axis: Any, title: str, rows: list[dict]) -> None:
    """The whole reply of each setting, medians: until its first token, then its answer."""
    settings = list(dict.fromkeys(row["method"] for row in rows))[::-1]
    parts = [
        [np.median([row[part] / 1e3 for row in rows if row["method"] == setting]) for setting in settings]
        for part in ("ttft_ms", "answer_ms")
    ]
    axis.barh(settings, parts[0], color=_WARM, height=0.6, label="until the first token")
    axis.barh(settings, parts[1], left=parts[0], color=_PALE, height=0.6, label="the answer")
    axis.set_xlim(right=1.5 * max(map(sum, zip(*parts, strict=True))))  # room for the legend
    axis.set_title(title + ": seconds", fontsize=9.5, loc="left")
    axis.legend(frameon=False, fontsize=8)


def _pipeline(axis: Any, rows: list[dict]) -> None:
    servers = list(dict.fromkeys(row["method"] for row in rows))
    ratios = sorted({row["keep_ratio"] for row in rows})
    for number, (server, colour) in enumerate(zip(servers, (_INK, _WARM, _PALE), strict=True)):
        found = [
            [row["ttft_ms"] / 1e3 for row in rows if (row["method"], row["keep_ratio"]) == (server, one)] for one in ratios
        ]
        at = np.arange(len(ratios)) + 0.27 * (number - 1)
        axis.bar(at, [np.median(some) for some in found], width=0.25, color=colour, label=server)
    axis.set_xticks(range(len(ratios)), ["dense" if ratio == 1 else f"keep ratio {ratio:g}" for ratio in ratios])
    axis.set_title("Seconds to the first token, 2,048 tokens", fontsize=9.5, loc="left")
    axis.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
