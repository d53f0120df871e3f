"""Plots of the quality bench: accuracy against keep ratio, and by depth of the needle."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.quality import ask, tasks
from benchmarks.quality.matrix import METHODS
from benchmarks.quality.report import by_cell, interval, mean


def keep_ratios(rows: list[dict], path: Path) -> None:
    """Accuracy against keep ratio, a panel per task, a line per method, bands are the intervals."""
    names = [task for task in tasks.TASKS if any(row["task"] == task for row in rows)]
    methods = [method for method in METHODS[1:] if any(row["method"] == method for row in rows)]

    def draw(axis, task: str) -> None:
        mine = [row for row in rows if row["task"] == task]
        axis.axhline(mean([row for row in mine if row["method"] == ask.DENSE]), color="black", ls=":", label=ask.DENSE)
        for number, method in enumerate(methods):
            cells = by_cell([row for row in mine if row["method"] == method], ("keep_ratio",))
            ratios = sorted(cells)
            bounds = [interval(row["right"] for row in cells[one]) for one in ratios]
            x = [one for (one,) in ratios]
            axis.plot(x, [mean(cells[one]) for one in ratios], f"C{number}", marker="o", ms=3, label=method)
            axis.fill_between(x, [low for low, _ in bounds], [high for _, high in bounds], color=f"C{number}", alpha=0.15)
        axis.set_xlabel("keep ratio")

    _panels(names, draw, path)


def depths(rows: list[dict], path: Path) -> None:
    """Accuracy of a single needle by depth and length at each keep ratio, as heat maps."""
    ratios = sorted({row["keep_ratio"] for row in rows})
    lengths = sorted({row["length"] for row in rows})
    depths = sorted({row["depth"] for row in rows})

    def draw(axis, title: str) -> None:
        ratio = float(title.split()[-1])
        cells = by_cell([row for row in rows if row["keep_ratio"] == ratio], ("length", "depth"))
        image = [[mean(cells[n, depth]) for depth in depths] for n in lengths]
        axis.imshow(image, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set_yticks(range(len(lengths)), [str(n) for n in lengths])
        axis.set_xticks(range(0, len(depths), 5), [f"{depths[at]:.2f}" for at in range(0, len(depths), 5)])
        axis.set_xlabel("depth of the needle (0: beginning)")

    _panels([f"keep ratio {ratio:g}" for ratio in ratios], draw, path)


def _panels(titles: list[str], draw: Callable, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(4, len(titles))
    figure, axes = pyplot.subplots(-(-len(titles) // columns), columns, figsize=(4 * columns, 3.2 * -(-len(titles) // columns)))
    for axis, title in zip(np.atleast_1d(axes).ravel(), titles, strict=False):
        draw(axis, title)
        axis.set_title(title, fontsize=10)
    for axis in np.atleast_1d(axes).ravel()[len(titles) :]:
        axis.axis("off")
    np.atleast_1d(axes).ravel()[0].legend(fontsize=7) if np.atleast_1d(axes).ravel()[0].lines else None
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
