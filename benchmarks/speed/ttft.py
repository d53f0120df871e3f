"""Time to first token: prompt length x keep ratio x batch, dense and sparse side by side, beside the bound of the cost model.

`python -m benchmarks.speed.ttft --pair cpu-1-64` writes raw rows, prints tables, and draws the speed-up.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.quality.results import Results, read
from benchmarks.speed import arguments as shared
from benchmarks.speed import drawing, report
from benchmarks.speed.measure import compare
from benchmarks.speed.servers import serve


def main() -> None:
    """Goes on where an earlier run of the same command stopped."""
    parser = shared.parser("ttft", __doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    out = shared.rows_of("ttft", arguments)
    run(arguments, out)
    rows = read(out)
    print(f"\n{report.ratios_table(rows)}\n\n{report.stages_table(rows)}")
    plot(rows, out.with_suffix(".png"))


def run(arguments: argparse.Namespace, out: Path, wanted: Callable[[int], frozenset[str] | None] = lambda length: None) -> None:
    """Cells that the file does not have yet; the first round of each is not kept.

    `wanted` says what is measured at a length (`measure.compare`).
    """
    results = Results(out)
    cells = list(itertools.product(arguments.lengths, arguments.keep_ratios, arguments.batches))
    tokens = max((length + 64) * batch for length, _, batch in cells)
    sizes = shared.sizes(arguments, tokens)
    with tempfile.TemporaryDirectory() as folder, serve(arguments.pair, Path(folder), sizes) as servers:
        for (length, keep_ratio, batch), number in tqdm(
            list(itertools.product(cells, range(-1, arguments.rounds))), desc="rounds"
        ):
            row = {"length": length, "keep_ratio": keep_ratio, "batch": batch, "number": number}
            row["settings"] = {
                "chunked_prefill_size": arguments.chunked_prefill_size,
                "options": arguments.option,
                **({} if arguments.first_layers is None else {"first_layers": arguments.first_layers}),
            }
            if row not in results:
                measured = compare(servers, length, keep_ratio, batch, number, wanted(length))
                if number >= 0:
                    results.add({**row, **measured})


def plot(rows: list[dict], path: Path) -> None:
    """Speed-up against keep ratio, a line per length and batch, its bound dashed."""
    found = report.cells(rows)
    with drawing.axes(path, "keep ratio", "TTFT dense / sparse (dashed: bound)") as axes:
        for length, batch in sorted({(length, batch) for length, _, batch in found}):
            ratios = sorted(keep for one, keep, size in found if (one, size) == (length, batch))
            medians = [
                [np.median([figure(row) for row in found[length, keep, batch]]) for keep in ratios]
                for figure in (report.ratio, report.bound)
            ]
            (line,) = axes.plot(ratios, medians[0], marker="o", label=f"{length} tokens, batch {batch}")
            axes.plot(ratios, medians[1], linestyle="--", color=line.get_color(), alpha=0.6)


if __name__ == "__main__":
    main()
