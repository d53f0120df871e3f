"""What the plugin costs requests that are dense: TTFT and ITL of the same streams on stock SGLang and with SpecPrefill on.

`python -m benchmarks.speed.overhead` sends them by turns to both servers, twice to each for the noise. What is
added does not depend on the model: beside one of which little is to be computed (`--pair cpu-tiny`) the milliseconds stand out.
"""

import argparse
import operator
import random
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import launch
from benchmarks.quality.results import Results, read
from benchmarks.speed import arguments as shared
from benchmarks.speed.report import summary
from benchmarks.speed.servers import Servers, serve
from benchmarks.speed.streams import open_loop

_MODES = ("stock", "plugin", "stock_again", "plugin_again")


def main() -> None:
    """One row per round; the first two do not count."""
    parser = shared.parser("overhead", __doc__)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--streams", type=int, default=4, help="at once")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    out = shared.rows_of("overhead", arguments)
    out.unlink(missing_ok=True)
    results = Results(out)
    sizes = shared.sizes(arguments, 2 * arguments.streams * (arguments.length + 64))
    with tempfile.TemporaryDirectory() as folder, serve(arguments.pair, Path(folder), sizes, with_draft=False) as servers:
        for number in tqdm(range(-2, arguments.rounds), desc="rounds"):
            row = _round(servers, arguments, number)
            if number >= 0:
                results.add({"length": arguments.length, "number": number, **row})
    print(table(read(out)))


def table(rows: list[dict]) -> str:
    """Markdown: ratios and differences within a round; the noise is that of the second run on stock SGLang to the first."""
    head = ["figure", "stock ms"] + [f"{mode} {sign} stock" for sign in ("/", "-") for mode in ("with plugin", "stock again")]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for figure in ("ttft", "itl"):
        times = [{mode: row[mode][figure] for mode in _MODES} for row in rows]
        found = [
            summary(times, lambda ms, of=of, compared=compared: of(*compared(ms)), 4)
            for of in (operator.truediv, operator.sub)
            for compared in (_plugin_and_stock, lambda ms: (ms["stock_again"], ms["stock"]))
        ]
        stock = np.median([_plugin_and_stock(ms)[1] for ms in times])
        lines.append(f"| {figure.upper()} | {stock:.2f} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def _plugin_and_stock(ms: dict[str, float]) -> tuple[float, float]:
    """Means of both runs on either server."""
    return (ms["plugin"] + ms["plugin_again"]) / 2, (ms["stock"] + ms["stock_again"]) / 2


def _round(servers: Servers, arguments: argparse.Namespace, number: int) -> dict[str, dict[str, float]]:
    """Milliseconds, means over the streams. Always the other server than just before: one that has just run is faster."""
    draw = random.Random(number)
    prompts = [launch.random_ids(draw, arguments.length) for _ in range(arguments.streams)]
    found = {}
    for mode in (_MODES[-1], *_MODES):  # the first does not count: there was a pause before it
        url, custom = (servers.dense, None) if mode.startswith("stock") else (servers.sparse, {"spec_prefill": False})
        launch.flush(url)
        times = np.array(open_loop(url, prompts, output_tokens=arguments.output_tokens, gap_s=0, custom=custom))
        itl = (times[:, 1] - times[:, 0]) / (arguments.output_tokens - 1)
        found[mode] = {"ttft": round(1e3 * times[:, 0].mean(), 4), "itl": round(1e3 * itl.mean(), 4)}
    return found


if __name__ == "__main__":
    main()
