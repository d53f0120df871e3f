"""Load: `sglang.benchmark.serving` over request rates, dense and sparse by turns: TTFT, TPOT, ITL and goodput.

`python -m benchmarks.speed.serving` is a thin driver: its datasets, its client and its figures are SGLang's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import launch
from benchmarks.quality.results import Results, read
from benchmarks.speed import arguments as shared
from benchmarks.speed import drawing, pairs
from benchmarks.speed.servers import Servers, serve

_FIGURES = ("ttft", "tpot", "itl")
_PERCENTILES = ("median", "p90", "p99")


def main() -> None:
    """One row per rate, mode and round; rows that exist are not measured again."""
    parser = shared.parser("serving", __doc__)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--output-tokens", type=int, default=16)
    parser.add_argument("--keep-ratio", type=float, default=0.1)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--prompts", type=int, default=16, help="per rate")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--goodput", nargs="+", default=["ttft:20000"], help="what SGLang's --goodput takes")
    arguments = parser.parse_args()
    out = shared.rows_of("serving", arguments)
    results = Results(out)
    sizes = shared.sizes(arguments, 16 * (arguments.length + 64), arguments.keep_ratio)
    rounds = [(n, rate, mode) for n in range(arguments.rounds) for rate in arguments.rates for mode in ("dense", "sparse")]
    with tempfile.TemporaryDirectory() as folder, serve(arguments.pair, Path(folder), sizes, with_draft=False) as servers:
        for number, rate, mode in tqdm(rounds, desc="rates"):
            row = {"method": mode, "length": arguments.length, "keep_ratio": arguments.keep_ratio, "number": number}
            row["settings"] = {"rate": rate, "prompts": arguments.prompts, "output_tokens": arguments.output_tokens}
            row["settings"] |= {"goodput": arguments.goodput, "chunked_prefill_size": arguments.chunked_prefill_size}
            row["settings"] |= {"options": arguments.option}
            if row not in results:
                results.add({**row, **_measure(servers, arguments, mode, rate, number, Path(folder))})
    rows = read(out)
    print(table(rows))
    plot(rows, out.with_suffix(".png"))


def table(rows: list[dict]) -> str:
    """Markdown: medians over rounds are left to the reader, a line is a round."""
    names = [f"{figure.upper()} {percentile}" for figure in _FIGURES for percentile in _PERCENTILES]
    lines = ["| rate /s | mode | " + " | ".join(names) + " | goodput /s |", "|---" * (3 + len(names)) + "|"]
    for row in sorted(rows, key=lambda row: (row["settings"]["rate"], row["method"], row["number"])):
        shown = [f"{row[figure][percentile]:.0f}" for figure in _FIGURES for percentile in _PERCENTILES]
        goodput = f"{row['goodput']:.3f}"
        lines.append(f"| {row['settings']['rate']} | {row['method']} | " + " | ".join(shown) + f" | {goodput} |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """TTFT over request rate, a line per mode, its 99th percentile dashed; medians over rounds."""
    with drawing.axes(path, "requests /s", "TTFT, s (dashed: p99)") as axes:
        for mode in ("dense", "sparse"):
            mine = [row for row in rows if row["method"] == mode]
            rates = sorted({row["settings"]["rate"] for row in mine})

            def seconds(percentile: str, mine=mine, rates=rates) -> list[float]:
                same = [[row["ttft"][percentile] for row in mine if row["settings"]["rate"] == rate] for rate in rates]
                return [float(np.median(one)) / 1e3 for one in same]

            (line,) = axes.loglog(rates, seconds("median"), marker="o", label=mode)
            axes.loglog(rates, seconds("p99"), linestyle="--", color=line.get_color(), alpha=0.6)


def _measure(servers: Servers, arguments: argparse.Namespace, mode: str, rate: float, number: int, folder: Path) -> dict:
    url = servers.dense if mode == "dense" else servers.sparse
    launch.flush(url, deadline_s=600)
    output = folder / "serving.jsonl"
    output.unlink(missing_ok=True)
    words = {
        "backend": "sglang",
        "base-url": url,
        "dataset-name": "random-ids",
        "tokenizer": str(pairs.TOKENIZER),
        "random-input-len": arguments.length,
        "random-output-len": arguments.output_tokens,
        "random-range-ratio": 1.0,
        "num-prompts": arguments.prompts,
        "request-rate": rate,
        "seed": number + 1,
        "warmup-requests": 0,
        "output-file": output,
    }
    command = [sys.executable, "-m", "sglang.benchmark.serving", "--tokenize-prompt", "--output-details"]
    command += ["--goodput", *arguments.goodput]
    command += [word for name, value in words.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"sglang.benchmark.serving failed: {done.stderr[-2000:]}")
    return figures(json.loads(output.read_text().splitlines()[-1]))


def figures(result: dict) -> dict:
    """SGLang's percentiles in milliseconds and its goodput."""
    percentiles = {
        figure: {percentile: result[f"{percentile}_{figure}_ms"] for percentile in _PERCENTILES} for figure in _FIGURES
    }
    return {**percentiles, "goodput": result["request_goodput"], "completed": result["completed"]}


if __name__ == "__main__":
    main()
