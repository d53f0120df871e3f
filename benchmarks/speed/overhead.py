"""What the plugin costs requests that are dense: TTFT and ITL of the same streams on stock SGLang and with SpecPrefill on.

`python -m benchmarks.speed.overhead` sends them by turns to both servers, to stock SGLang twice for the noise. What is
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
from benchmarks.speed.measure import rotated
from benchmarks.speed.pairs import prompt
from benchmarks.speed.report import summary
from benchmarks.speed.servers import Servers, Sizes, serve
from benchmarks.speed.streams import open_loop

_OFF = {"spec_prefill": False}
_COMPARED = ("plugin", "stock_again")


def main() -> None:
    """One row per round; the first two do not count."""
    parser = shared.parser("overhead", __doc__)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--streams", type=int, default=4, help="at once")
    parser.add_argument("--rounds", type=int, default=20)
    launch.add_option(parser)
    arguments = parser.parse_args()
    out = shared.rows_of("overhead", arguments)
    out.unlink(missing_ok=True)
    results = Results(out)
    sizes = Sizes(2 * arguments.streams * (arguments.length + 64), arguments.chunked_prefill_size, arguments.option)
    with tempfile.TemporaryDirectory() as folder, serve(arguments.pair, Path(folder), sizes, with_draft=False) as servers:
        for number in tqdm(range(-2, arguments.rounds), desc="rounds"):
            row = _round(servers, arguments, number)
            if number >= 0:
                results.add({"length": arguments.length, "number": number, **row})
    print(table(read(out)))


def table(rows: list[dict]) -> str:
    """Markdown: ratios and differences within a round, to the first run on stock SGLang."""
    head = ["figure", "stock ms"] + [f"{mode} {sign} stock" for sign in ("/", "-") for mode in ("with plugin", "stock again")]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for figure in ("ttft", "itl"):
        times = [{mode: row[mode][figure] for mode in ("stock", *_COMPARED)} for row in rows]
        found = [
            summary(times, lambda ms, mode=mode, of=of: of(ms[mode], ms["stock"]), 4)
            for of in (operator.truediv, operator.sub)
            for mode in _COMPARED
        ]
        stock = np.median([ms["stock"] for ms in times])
        lines.append(f"| {figure.upper()} | {stock:.2f} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def _round(servers: Servers, arguments: argparse.Namespace, number: int) -> dict[str, dict[str, float]]:
    """Milliseconds, means over the streams, in an order that changes with `number`."""
    draw = random.Random(number)
    prompts = [prompt(draw, arguments.length) for _ in range(arguments.streams)]
    runs = [("stock", servers.dense, None), ("plugin", servers.sparse, _OFF), ("stock_again", servers.dense, None)]
    found = {}
    for mode, url, custom in rotated(runs, number):
        launch.flush(url)
        times = np.array(open_loop(url, prompts, output_tokens=arguments.output_tokens, gap_s=0, custom=custom))
        itl = (times[:, 1] - times[:, 0]) / (arguments.output_tokens - 1)
        found[mode] = {"ttft": round(1e3 * times[:, 0].mean(), 4), "itl": round(1e3 * itl.mean(), 4)}
    return found


if __name__ == "__main__":
    main()
