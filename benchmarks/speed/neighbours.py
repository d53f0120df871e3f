"""What the method lazy costs requests that are dense: TTFT and ITL of the same streams beside as many others.

`python -m benchmarks.speed.neighbours` sends them by turns to stock SGLang, to a server with the method loaded whose other
streams are dense too, and to the same server beside lazy ones.
"""

import argparse
import contextlib
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import launch
from benchmarks.quality.results import Results, read
from benchmarks.speed import arguments as shared
from benchmarks.speed import pairs
from benchmarks.speed.report import summary
from benchmarks.speed.servers import DUMMY, command
from benchmarks.speed.streams import open_loop

_DENSE = {"spec_prefill": False}
_MODES = {"stock": None, "loaded": _DENSE, "beside": {}}  # what the others ask for


def main() -> None:
    """One row per round; the first does not count."""
    parser = shared.parser("neighbours", __doc__)
    parser.add_argument("--layers", default="8", help="from which on the method lazy drops tokens")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--streams", type=int, default=2, help="at once, beside as many others")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    out = shared.rows_of("neighbours", arguments)
    out.unlink(missing_ok=True)
    results = Results(out)
    sizes = shared.sizes(arguments, 4 * arguments.streams * (arguments.length + 64), keep_ratio=0.2)
    flags = launch.sparse_flags(None, method="lazy", layers=arguments.layers, min_tokens=16, keep_ratio=sizes.keep_ratio)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        target, _ = pairs.write(arguments.pair, Path(name))
        weights = () if arguments.pair in pairs.TRAINED else DUMMY
        words = {"stock": command(target, sizes, *weights), "loaded": command(target, sizes, *weights, *flags)}
        env = {"stock": launch.CONTROL, "loaded": None}
        urls = {role: stack.enter_context(launch.serve(words[role], Path(name) / f"{role}.log", env[role])) for role in words}
        for number in tqdm(range(-1, arguments.rounds), desc="rounds"):
            row = {mode: _times(urls["stock" if mode == "stock" else "loaded"], arguments, number, mode) for mode in _MODES}
            if number >= 0:
                results.add({"length": arguments.length, "number": number, **row})
    print(table(read(out)))


def table(rows: list[dict]) -> str:
    """Markdown: ratios within a round."""
    lines = ["| figure | stock ms | loaded / stock | beside lazy ones / stock |", "|---|---|---|---|"]
    for figure in ("ttft", "itl", "ttft_of_others", "itl_of_others"):
        stock = np.median([row["stock"][figure] for row in rows])
        ratios = [summary(rows, lambda row, m=mode, f=figure: row[m][f] / row["stock"][f], 3) for mode in ("loaded", "beside")]
        lines.append(f"| {figure} | {stock:.2f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def _times(url: str, arguments: argparse.Namespace, number: int, mode: str) -> dict[str, float]:
    """Milliseconds, means over the streams that are dense in every mode; and over the others."""
    draw = random.Random(number)
    prompts = [launch.random_ids(draw, arguments.length) for _ in range(2 * arguments.streams)]
    own, others = prompts[: arguments.streams], prompts[arguments.streams :]
    how = {"output_tokens": arguments.output_tokens, "gap_s": 0}
    launch.flush(url)
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(open_loop, url, others, custom=_MODES[mode], **how)
        times = {"": open_loop(url, own, custom=None if mode == "stock" else _DENSE, **how), "_of_others": beside.result()}
    found = {}
    for whose, pairs_of_seconds in times.items():
        first, whole = np.array(pairs_of_seconds).T
        itl = (whole - first) / (arguments.output_tokens - 1)
        found |= {f"ttft{whose}": round(1e3 * first.mean(), 4), f"itl{whose}": round(1e3 * itl.mean(), 4)}
    return found


if __name__ == "__main__":
    main()
