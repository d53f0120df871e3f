"""How time grows with the prompt: dense, sparse, draft, scoring and target against prompt length, with fitted exponents.

`python -m benchmarks.speed.scaling` measures as `ttft` does, at one keep ratio, and draws both axes logarithmic.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import linregress

from benchmarks.quality.results import read
from benchmarks.speed import arguments as shared
from benchmarks.speed import drawing, ttft

FIGURES: dict[str, Callable[[dict], float]] = {
    "dense": lambda row: row.get("dense", np.nan),
    "sparse": lambda row: row["sparse"],
    "draft": lambda row: row["stages"]["draft"],
    "score": lambda row: row["stages"]["score"],
    "target (kept tokens)": lambda row: row["target_alone"],
}


def main() -> None:
    """The longest prompts decide how long this takes: dense attention grows with the square, so it may stop earlier."""
    parser = shared.parser("scaling", __doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--keep-ratio", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dense-up-to", type=int, default=16384, help="longer prompts are measured sparse only")
    arguments = parser.parse_args()
    arguments.keep_ratios, arguments.batches = [arguments.keep_ratio], [1]
    out = shared.rows_of("scaling", arguments)
    sparse = frozenset({"sparse", "target_alone"})
    ttft.run(arguments, out, lambda length: sparse | {"dense"} if length <= arguments.dense_up_to else sparse)
    rows = read(out)
    print(f"\n{table(rows)}")
    plot(rows, out.with_suffix(".png"))


def exponent(rows: list[dict], figure: Callable[[dict], float]) -> tuple[float, float]:
    """b and its 95 % half-width in time = a * tokens ** b, by least squares of the logarithms."""
    fit = linregress(np.log([row["length"] for row in rows]), np.log([figure(row) for row in rows]))
    return fit.slope, 1.96 * fit.stderr


def table(rows: list[dict]) -> str:
    """Markdown: median milliseconds per length, the exponent over all, and the most memory the server has had by then."""
    lengths = sorted({row["length"] for row in rows})
    lines = ["| part | " + " | ".join(map(str, lengths)) + " | exponent |", "|---" * (len(lengths) + 2) + "|"]
    for name, figure in FIGURES.items():
        medians = _medians(rows, lengths, figure)
        slope, width = exponent([row for row in rows if figure(row) > 0], figure)  # the log has tenths of milliseconds
        lines.append(f"| {name} | " + " | ".join(f"{one:.1f}" for one in medians) + f" | {slope:.2f} ± {width:.2f} |")
    peaks = [max(row["peak_mib"] for row in rows if row["length"] == length) for length in lengths]
    return "\n".join([*lines, "| peak resident memory, MiB | " + " | ".join(f"{peak:.0f}" for peak in peaks) + " | |"])


def plot(rows: list[dict], path: Path) -> None:
    """A line per part."""
    lengths = sorted({row["length"] for row in rows})
    with drawing.axes(path, "prompt tokens", "ms") as axes:
        for name, figure in FIGURES.items():
            axes.loglog(lengths, _medians(rows, lengths, figure), marker="o", label=name)


def _medians(rows: list[dict], lengths: list[int], figure: Callable[[dict], float]) -> list[float]:
    return [float(np.median([figure(row) for row in rows if row["length"] == length])) for length in lengths]


if __name__ == "__main__":
    main()
