"""Highest request rate under a limit, dense and sparse, by bisection: the paper's protocol (arXiv 2502.02789, section 4).

Open loop at a constant gap. A level fails when more than 3 % of its requests exceed the limit on the time to the first token,
or on the whole request. `python -m benchmarks.speed.max_qps` searches for one mode after the other in one run; every level is
a row.
"""

import argparse
import math
import random
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks import launch
from benchmarks.quality.results import Results, read
from benchmarks.speed import arguments as shared
from benchmarks.speed.pairs import prompt
from benchmarks.speed.servers import Servers, Sizes, serve
from benchmarks.speed.streams import open_loop

_TOLERATED = 0.03


class Limits(NamedTuple):
    """Seconds."""

    first_token: float
    whole: float


def main() -> None:
    """Limits that are not given are multiples of what one dense request takes alone."""
    parser = shared.parser("max_qps", __doc__)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--keep-ratio", type=float, default=0.1)
    parser.add_argument("--output-tokens", type=int, default=8)
    parser.add_argument("--requests", type=int, default=24, help="per level, at least")
    parser.add_argument(
        "--duration", type=float, default=8, help="of a level, at least, in limits: a short one hides a backlog"
    )
    parser.add_argument("--steps", type=int, default=4, help="how narrow: the rates found differ by 2 ** 0.5 ** STEPS")
    parser.add_argument("--ttft-limit", type=float, help="seconds; default: twice a dense request alone")
    parser.add_argument("--limit", type=float, help="seconds of a whole request; default: three times a dense one alone")
    arguments = parser.parse_args()
    out = shared.rows_of("max_qps", arguments)
    out.unlink(missing_ok=True)  # limits and rates of two runs do not mix
    results = Results(out)
    sizes = Sizes(8 * (arguments.length + 64), arguments.chunked_prefill_size, keep_ratio=arguments.keep_ratio)
    with tempfile.TemporaryDirectory() as folder, serve(arguments.pair, Path(folder), sizes, with_draft=False) as servers:
        alone = {mode: _alone(servers, arguments, mode) for mode in ("dense", "sparse")}
        limits = Limits(arguments.ttft_limit or 2 * alone["dense"][0], arguments.limit or 3 * alone["dense"][1])
        for mode in ("dense", "sparse"):
            for row in _search(servers, arguments, mode, limits, 0.7 / alone[mode][0]):
                results.add({"method": mode, "length": arguments.length, "keep_ratio": arguments.keep_ratio, **row})
    print(table(read(out)))


def table(rows: list[dict]) -> str:
    """Markdown: the highest passing and the lowest failing rate of each mode."""
    lines = ["| mode | TTFT limit s | limit s | passes at | fails at | median TTFT s there |", "|---" * 6 + "|"]
    for mode in ("dense", "sparse"):
        mine = [row for row in rows if row["method"] == mode]
        best = max((row for row in mine if row["passes"]), key=lambda row: row["rate"], default=None)
        worst = min((row for row in mine if not row["passes"]), key=lambda row: row["rate"], default=None)
        if best is None or worst is None:
            return "\n".join([*lines, "", f"{mode}: no rate passed, or none failed"])
        median = np.median([first for first, _ in best["times"]])
        first, whole = best["limits"]
        lines.append(f"| {mode} | {first:.2f} | {whole:.2f} | {best['rate']:.3f}/s | {worst['rate']:.3f}/s | {median:.2f} |")
    rates = {mode: max(row["rate"] for row in rows if row["method"] == mode and row["passes"]) for mode in ("dense", "sparse")}
    return "\n".join([*lines, "", f"sparse / dense: {rates['sparse'] / rates['dense']:.2f}x"])


def _search(servers: Servers, arguments: argparse.Namespace, mode: str, limits: Limits, rate: float):
    """Rows: the rate grows or falls by the root of two until one passes and one fails, then it is bisected in ratio."""
    low = high = None
    with tqdm(desc=f"{mode} levels") as bar:
        for _ in range(12 + arguments.steps):
            count = max(arguments.requests, math.ceil(arguments.duration * max(limits) * rate))
            times = _level(servers, arguments, mode, rate, count)
            exceeded = sum(first > limits.first_token or whole > limits.whole for first, whole in times)
            passes = exceeded <= _TOLERATED * len(times)
            bar.set_postfix(rate=round(rate, 3), passes=passes)
            bar.update()
            yield {"rate": rate, "passes": passes, "limits": list(limits), "times": times}
            low, high = (rate, high) if passes else (low, rate)
            if low and high and high / low < 2 ** (0.5**arguments.steps) * 1.001:
                return
            rate = (low * high) ** 0.5 if low and high else rate * 2 ** (0.5 if passes else -0.5)


def _alone(servers: Servers, arguments: argparse.Namespace, mode: str) -> tuple[float, float]:
    """Seconds of one request to an idle server; the first of two is not counted."""
    return [_level(servers, arguments, mode, rate=1.0, count=1)[0] for _ in range(2)][-1]


def _level(servers: Servers, arguments: argparse.Namespace, mode: str, rate: float, count: int) -> list[tuple[float, float]]:
    """Seconds to the first token and to the end of every request, sent at a constant gap to an empty server."""
    url = servers.dense if mode == "dense" else servers.sparse
    launch.flush(url, deadline_s=600)
    draw = random.Random(f"{rate}/{count}")
    prompts = [prompt(draw, arguments.length) for _ in range(count)]
    return open_loop(url, prompts, output_tokens=arguments.output_tokens, gap_s=1 / rate)


if __name__ == "__main__":
    main()
