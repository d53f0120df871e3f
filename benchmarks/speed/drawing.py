"""One plot in a file beside its rows."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt


@contextlib.contextmanager
def axes(path: Path, xlabel: str, ylabel: str) -> Iterator[Any]:
    """Axes to draw on; labelled, given a legend beside them and written as PNG at the end."""
    figure, drawn = plt.subplots(figsize=(7, 5))
    yield drawn
    drawn.set(xlabel=xlabel, ylabel=ylabel)
    drawn.legend(loc="upper left", bbox_to_anchor=(1, 1))  # "best" covers bars
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def errors(points: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """What matplotlib calls error bars, of figures with their intervals: float64 [2, points]."""
    return np.array([(max(mean - low, 0), max(high - mean, 0)) for mean, low, high in points]).T
