"""Highest request rate under limits, dense and sparse, by bisection: the paper's protocol (arXiv 2502.02789, section 4).

Open loop at a constant gap. A level fails when more than 3 % of its requests exceed the limit on the time to the first token,
or on the whole request. `python -m benchmarks.speed.max_qps` searches for one mode after the other in one run; every level is
a row. With `--rates` it measures these levels and no others, to see in long ones what a search can sustain.
"""

import argparse
import functools
import itertools
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks import launch
from benchmarks.quality.results import Results, read
from benchmarks.speed import arguments as shared
from benchmarks.speed import drawing
from benchmarks.speed.servers import Servers, serve
from benchmarks.speed.streams import open_loop

_TOLERATED = 0.03
_MODES = ("dense", "sparse", "backfill")
_CUSTOM = {"backfill": {"spec_prefill_backfill": "turn"}}  # sparse too, and prompts are prefilled whole when there is time


class Limits(NamedTuple):
    """Seconds."""

    first_token: float
    whole: float | None


def main() -> None:
    """Limits that are not given are multiples of what one dense request takes alone."""
    parser = shared.parser("max_qps", __doc__)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--keep-ratio", type=float, default=0.1)
    parser.add_argument("--output-tokens", type=int, default=8)
    parser.add_argument("--requests", type=int, default=24, help="per level, at least")
    parser.add_argument(
        "--duration", type=float, default=25, help="of a level, at least, in dense requests alone: a short one hides a backlog"
    )
    parser.add_argument("--steps", type=int, default=4, help="how narrow: the rates found differ by 2 ** 0.5 ** STEPS")
    parser.add_argument("--ttft-limit", type=float, help="seconds; default: twice a dense request alone")
    parser.add_argument("--limit", type=float, help="seconds of a whole request; default: three times a dense one alone")
    parser.add_argument("--rates", type=float, nargs="+", help="levels, requests a second, instead of a search")
    parser.add_argument("--modes", nargs="+", choices=_MODES, default=_MODES[:2])
    parser.add_argument("--first-token-only", action="store_true", help="no limit on whole requests")
    arguments = parser.parse_args()
    out = shared.rows_of("max_qps", arguments)
    out.unlink(missing_ok=True)  # limits and rates of two runs do not mix
    results = Results(out)
    sizes = shared.sizes(arguments, 8 * (arguments.length + 64), arguments.keep_ratio)
    with tempfile.TemporaryDirectory() as folder, serve(arguments.pair, Path(folder), sizes, with_draft=False) as servers:
        alone = {mode: _alone(servers, arguments, mode) for mode in ("dense", "sparse")}
        whole = None if arguments.first_token_only else arguments.limit or 3 * alone["dense"][1]
        limits = Limits(arguments.ttft_limit or 2 * alone["dense"][0], whole)
        duration_s = arguments.duration * alone["dense"][1]
        for mode in arguments.modes:
            alone.setdefault(mode, alone["sparse"])
            level = functools.partial(_level, servers, arguments, mode)
            judged = functools.partial(judge, level, limits, duration_s, arguments.requests)
            found = map(judged, arguments.rates) if arguments.rates else search(judged, 1 / alone[mode][0], arguments.steps)
            for row in tqdm(found, desc=f"{mode} levels"):
                results.add({"method": mode, "length": arguments.length, "keep_ratio": arguments.keep_ratio, **row})
    rows = read(out)
    print(levels_table(rows))
    if not arguments.rates:
        print(f"\n{table(rows)}")
    plot(rows, out.with_suffix(".png"))


def levels_table(rows: list[dict]) -> str:
    """Markdown: every level; where TTFT grows from its first half to its second, a backlog does."""
    head = ("mode", "rate /s", "requests", "passes", "TTFT median s, first half", "second half", "TTFT max s", "whole max s")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in sorted(rows, key=lambda row: (row["method"], row["rate"])):
        first, whole = np.array(row["times"]).T
        seconds = [*(np.median(half) for half in np.array_split(first, 2)), first.max(), whole.max()]
        cells = (row["method"], f"{row['rate']:.3f}", str(len(first)), "yes" if row["passes"] else "no")
        cells = (*cells, *(f"{one:.1f}" for one in seconds))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(rows: list[dict]) -> str:
    """Markdown: the highest passing and the lowest failing rate of each mode."""
    lines = ["| mode | TTFT limit s | limit s | passes at | fails at | median TTFT s there |", "|---" * 6 + "|"]
    modes = [mode for mode in _MODES if any(row["method"] == mode for row in rows)]
    for mode in modes:
        mine = [row for row in rows if row["method"] == mode]
        best = max((row for row in mine if row["passes"]), key=lambda row: row["rate"], default=None)
        worst = min((row for row in mine if not row["passes"]), key=lambda row: row["rate"], default=None)
        if best is None or worst is None:
            return "\n".join([*lines, "", f"{mode}: no rate passed, or none failed"])
        median = np.median([first for first, _ in best["times"]])
        first, whole = best["limits"]
        limits = f"{first:.2f} | {'none' if whole is None else f'{whole:.2f}'}"
        lines.append(f"| {mode} | {limits} | {best['rate']:.3f}/s | {worst['rate']:.3f}/s | {median:.2f} |")
    rates = {mode: max(row["rate"] for row in rows if row["method"] == mode and row["passes"]) for mode in modes}
    ratios = [f"{one} / {other}: {rates[one] / rates[other]:.2f}x" for other, one in itertools.pairwise(modes)]
    return "\n".join([*lines, "", *ratios])


def plot(rows: list[dict], path: Path) -> None:
    """Median TTFT of every level over its rate, a line per mode; levels that fail are crosses."""
    with drawing.axes(path, "requests /s", "TTFT, s (crosses: the level fails)") as axes:
        for mode in sorted({row["method"] for row in rows}):
            levels = sorted(
                (row["rate"], float(np.median([first for first, _ in row["times"]])), row["passes"])
                for row in rows
                if row["method"] == mode
            )
            (line,) = axes.loglog([rate for rate, *_ in levels], [median for _, median, _ in levels], label=mode)
            for rate, median, passes in levels:
                axes.plot(rate, median, marker="o" if passes else "x", color=line.get_color())
        axes.axhline(rows[0]["limits"][0], linestyle=":", color="gray", label="limit")


def judge(
    level: Callable[[float, int], list[tuple[float, float]]], limits: Limits, duration_s: float, requests: int, rate: float
) -> dict:
    """The row of one level. `level` takes a rate and how many requests, and gives seconds to the first token and to the end."""
    times = level(rate, max(requests, math.ceil(duration_s * rate)))
    exceeded = sum(first > limits.first_token or whole > (limits.whole or math.inf) for first, whole in times)
    return {"rate": rate, "passes": exceeded <= _TOLERATED * len(times), "limits": list(limits), "times": times}


def search(judged: Callable[[float], dict], rate: float, steps: int) -> Iterator[dict]:
    """Rows: the rate grows or falls by the root of two until one passes and one fails, then it is bisected in ratio."""
    low = high = None
    for _ in range(12 + steps):
        row = judged(rate)
        yield row
        low, high = (rate, high) if row["passes"] else (low, rate)
        if low and high and high / low < 2 ** (0.5**steps) * 1.001:
            return
        rate = (low * high) ** 0.5 if low and high else rate * 2 ** (0.5 if row["passes"] else -0.5)


def _alone(servers: Servers, arguments: argparse.Namespace, mode: str) -> tuple[float, float]:
    """Seconds of one request to an idle server; the first of two is not counted."""
    return [_level(servers, arguments, mode, rate=1.0, count=1)[0] for _ in range(2)][-1]


def _level(servers: Servers, arguments: argparse.Namespace, mode: str, rate: float, count: int) -> list[tuple[float, float]]:
    """Seconds to the first token and to the end of every request, sent at a constant gap to an empty server."""
    url = servers.dense if mode == "dense" else servers.sparse
    launch.flush(url, deadline_s=600)
    draw = random.Random(f"{rate}/{count}")
    prompts = [launch.random_ids(draw, arguments.length) for _ in range(count)]
    custom = _CUSTOM.get(mode)
    return open_loop(url, prompts, output_tokens=arguments.output_tokens, gap_s=1 / rate, custom=custom)


if __name__ == "__main__":
    main()
