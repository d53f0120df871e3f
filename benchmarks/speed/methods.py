"""The methods side by side: time to first token, per output token, and memory, each on a server of its own, dense beside.

`python -m benchmarks.speed.methods --pair smollm2 --layers 15 --predictor DIR` asks the same prompts of all servers by turns.
"""

import argparse
import contextlib
import json
import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import launch
from benchmarks.interleaving import Stream
from benchmarks.quality.results import Results, read
from benchmarks.speed import arguments as shared
from benchmarks.speed import drawing, pairs
from benchmarks.speed.measure import first_tokens_ms, rotated
from benchmarks.speed.report import summary
from benchmarks.speed.servers import Sizes, command, peak_mib

DENSE = "dense"


def main() -> None:
    """One row per method, keep ratio and round; prints medians, ratios within a round, and what its layers would allow."""
    parser = shared.parser("methods", __doc__)
    parser.set_defaults(pair="smollm2")
    parser.add_argument("--layers", type=int, required=True, help="of early-layers and lazy; the predictor's are its own")
    parser.add_argument("--predictor", type=Path, help="of the target's first layers; without one kv-prediction is left out")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--output-tokens", type=int, default=24)
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    out = shared.rows_of("methods", arguments)
    results = Results(out)
    with tempfile.TemporaryDirectory() as folder, _serve(arguments, Path(folder)) as (urls, parts):
        for number in tqdm(range(-1, arguments.rounds), desc="rounds"):
            for name, keep_ratio in rotated(_cells(urls, arguments.keep_ratios), max(number, 0)):
                row = {"method": name, "length": arguments.length, "keep_ratio": keep_ratio, "number": number, "settings": {}}
                if row not in results:
                    measured = _measure(urls[name], arguments, keep_ratio, number)
                    if number >= 0:  # the first round is not kept
                        results.add({**row, **measured, "bound": _bound(name, parts, measured["kept"])})
    rows = read(out)
    print(table(rows))
    plot(rows, out.with_suffix(".png"))


def _cells(urls: dict[str, str], keep_ratios: list[float]) -> list[tuple[str, float]]:
    """kv-prediction keeps what it is told by its tail."""
    once = {DENSE, "kv-prediction"}
    return [(name, ratio) for name in urls for ratio in ([1.0] if name in once else keep_ratios)]


def table(rows: list[dict]) -> str:
    """Markdown: medians [95 % interval]; ratios to the same round's dense."""
    dense = {row["number"]: row for row in rows if row["method"] == DENSE}
    head = (
        "method",
        "keep ratio",
        "TTFT ms",
        "dense / this",
        "by its layers at most",
        "TPOT ms",
        "TPOT, this / dense",
        "memory MiB",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, ratio in dict.fromkeys((row["method"], row["keep_ratio"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["keep_ratio"]) == (name, ratio)]
        figures = (
            summary(mine, lambda row: row["ttft_ms"], 0),
            summary(mine, lambda row: dense[row["number"]]["ttft_ms"] / row["ttft_ms"]),
            summary(mine, lambda row: row["bound"]),
            summary(mine, lambda row: row["tpot_ms"], 1),
            summary(mine, lambda row: row["tpot_ms"] / dense[row["number"]]["tpot_ms"]),
            f"{max(row['peak_mib'] for row in mine):.0f}",
        )
        shown = "" if ratio == 1 else ratio
        lines.append(f"| {name} | {shown} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """How many times sooner the first token comes, a bar per method and keep ratio; what its layers would allow, a line."""
    with drawing.axes(path, "", "TTFT dense / this (line: by its layers at most)") as axes:
        dense = {row["number"]: row["ttft_ms"] for row in rows if row["method"] == DENSE}
        for at, (name, ratio) in enumerate(dict.fromkeys((row["method"], row["keep_ratio"]) for row in rows)):
            mine = [row for row in rows if (row["method"], row["keep_ratio"]) == (name, ratio)]
            label = name if ratio == 1 else f"{name}, {ratio}"
            axes.bar(at, np.median([dense[row["number"]] / row["ttft_ms"] for row in mine]), label=label)
            axes.hlines(np.median([row["bound"] for row in mine]), at - 0.4, at + 0.4, color="black")
        axes.set_xticks([])


@contextlib.contextmanager
def _serve(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[dict[str, str], dict[str, float]]]:
    """URL of each server; of each method's reader, its share of the target's layers."""
    target, draft = pairs.write(arguments.pair, folder)
    count = json.loads((target / "config.json").read_text())["num_hidden_layers"]
    sizes = Sizes(arguments.length + 512, arguments.chunked_prefill_size)
    inside = {"layers": arguments.layers}
    methods: dict[str, tuple[Path | None, dict]] = {"early-layers": (None, inside), "lazy": (None, inside)}
    parts = dict.fromkeys(methods, arguments.layers / count)
    if draft != target:
        methods["draft"], parts["draft"] = (draft, {}), _weights(draft) / _weights(target)
    if arguments.predictor is not None:
        about = json.loads((arguments.predictor / "predictor.json").read_text())
        methods["kv-prediction"] = None, {"predictor": arguments.predictor.resolve()}
        parts["kv-prediction"] = about["layers"] / count
    with contextlib.ExitStack() as stack:
        words = command(target, sizes, *arguments.option)
        urls = {DENSE: stack.enter_context(launch.serve(words, folder / "dense.log", launch.CONTROL))}
        for name, (reader, more) in methods.items():
            own = launch.sparse_flags(reader, method=name, min_tokens=16, **more)
            urls[name] = stack.enter_context(launch.serve([*words, *own], folder / f"{name}.log"))
        yield urls, parts


def _weights(model: Path) -> float:
    """Of the layers: what a token costs, attention apart."""
    config = json.loads((model / "config.json").read_text())
    return config["num_hidden_layers"] * config["hidden_size"] * (4 * config["hidden_size"] + 3 * config["intermediate_size"])


def _bound(name: str, parts: dict[str, float], kept: float) -> float:
    """Dense over what a method's layers compute, in tokens times layers."""
    if name == DENSE:
        return 1.0
    own = parts[name]
    return 1 / (own + ((1 - own) * kept if name == "lazy" else kept))


def _measure(url: str, arguments: argparse.Namespace, keep_ratio: float, number: int) -> dict:
    """Of a prompt that nothing has read before."""
    prompt = launch.random_ids(random.Random(f"{arguments.length}/{number}"), arguments.length)
    custom = None if keep_ratio == 1 else {"spec_prefill_keep_ratio": keep_ratio}
    took, (reply,) = first_tokens_ms(url, [prompt], custom)
    launch.flush(url)
    stream = Stream(url, prompt, custom or {}, arguments.output_tokens, threading.Event())
    stream.join()
    said = reply["meta_info"].get("spec_prefill") or {}
    return {
        "ttft_ms": round(took, 2),
        "tpot_ms": round((stream.times[-1] - stream.times[0]) / (len(stream.times) - 1) * 1e3, 2),
        "kept": _kept(said, arguments.length),
        "said": said,
        "peak_mib": peak_mib(url),
    }


def _kept(said: dict, length: int) -> float:
    """Share of the prompt that goes through the target's last layers."""
    return (said.get("kept_tokens", length) - said.get("predicted_tokens", 0)) / length


if __name__ == "__main__":
    main()
