"""Inter-token latency of running streams while long prompts arrive: drafts in between, against dense prefill in between.

`python -m benchmarks.interleaving` serves the shipped pair once and, by turns, sends the same long prompts dense (SGLang's own
chunked prefill is the control) and sparse while short streams decode. Ratios compare modes of one run; raw rows are kept.
"""

import argparse
import itertools
import json
import random
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import requests
from tqdm import tqdm

from benchmarks import launch
from benchmarks.quality.results import Results, read
from benchmarks.speed.report import summary

_HERE = Path(__file__).parent
MODES = {"dense": {"spec_prefill": False}, "sparse": {"spec_prefill_keep_ratio": 0.1}}


def main() -> None:
    """Prints p50 and p99 per mode, and their ratio with a bootstrap interval over rounds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interleaving", description=__doc__)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=3, help="long prompts per round, all at once")
    parser.add_argument("--length", type=int, default=15_800, help="tokens of a long prompt")
    parser.add_argument("--rounds", type=int, default=4, help="of each mode, by turns")
    parser.add_argument("--chunked-prefill-size", type=int, default=1024)
    parser.add_argument("--target", type=Path, default=launch.TARGET)
    parser.add_argument("--draft", type=Path, default=launch.DRAFT)
    launch.add_option(parser)
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "interleaving.jsonl")
    arguments = parser.parse_args()
    results = Results(arguments.out)
    with tempfile.TemporaryDirectory() as folder, launch.serve(_command(arguments), Path(folder) / "server.log") as url:
        _round(url, arguments, "sparse", -1)  # warm
        for number in tqdm(range(arguments.rounds), desc="rounds"):
            for mode in MODES:
                results.add(_round(url, arguments, mode, number))
    print(table(read(arguments.out)))


def _command(arguments: argparse.Namespace) -> list[str]:
    return launch.command(
        arguments.target,
        *launch.sparse_flags(arguments.draft),
        *arguments.option,
        chunked_prefill_size=str(arguments.chunked_prefill_size),
        max_total_tokens="80000",
        max_running_requests="16",
    )


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| mode | ITL p50 ms | ITL p99 ms | ITL max ms | TTFT of the long prompts, median ms |", "|---|---|---|---|---|"]
    for mode in MODES:
        mine = [row for row in rows if row["method"] == mode]
        gaps = np.concatenate([row["itl_ms"] for row in mine])
        ttft = np.median([value for row in mine for value in row["ttft_ms"]])
        lines.append(f"| {mode} | {np.median(gaps):.1f} | {np.percentile(gaps, 99):.1f} | {gaps.max():.1f} | {ttft:.0f} |")
    pairs = [[_p99(rows, mode, number) for mode in MODES] for number in sorted({row["number"] for row in rows})]
    ratio = summary(pairs, lambda pair: pair[1] / pair[0], 3)
    return "\n".join([*lines, "", f"p99 sparse / dense: {ratio}, {len(pairs)} rounds"])


def _p99(rows: list[dict], mode: str, number: int) -> float:
    return next(float(np.percentile(row["itl_ms"], 99)) for row in rows if (row["method"], row["number"]) == (mode, number))


def _round(url: str, arguments: argparse.Namespace, mode: str, number: int) -> dict:
    """Gaps between tokens of the running streams while the long prompts wait for their first tokens (ms)."""
    launch.flush(url, deadline_s=120)
    draw = random.Random(number)  # the same prompts for both modes; the flush forgets them
    stop = threading.Event()
    streams = [Stream(url, launch.random_ids(draw, 64), MODES["dense"], 8000, stop) for _ in range(arguments.streams)]
    while not all(len(stream.times) > 3 for stream in streams):
        time.sleep(0.05)
    start = time.perf_counter()
    long = [Stream(url, launch.random_ids(draw, arguments.length), MODES[mode], 2, stop) for _ in range(arguments.prompts)]
    for stream in long:
        stream.join()
    end = max(stream.times[0] for stream in long)
    stop.set()
    for stream in streams:
        stream.join()
    gaps = [gap for stream in streams for gap in gaps_between(stream.times, start, end)]
    return {
        "method": mode,
        "number": number,
        "length": arguments.length,
        "ttft_ms": [round((stream.times[0] - start) * 1e3, 2) for stream in long],
        "itl_ms": [round(gap * 1e3, 2) for gap in gaps],
        "kept_tokens": [stream.last["meta_info"]["spec_prefill"]["kept_tokens"] for stream in long],
        "chunked_prefill_size": arguments.chunked_prefill_size,
    }


def gaps_between(times: list[float], start: float, end: float) -> list[float]:
    """Gaps that overlap with the time from `start` to `end`."""
    return [after - before for before, after in itertools.pairwise(times) if after > start and before < end]


class Stream(threading.Thread):
    """A streaming request that ends itself once `stop` is set; `times` are those of its tokens, in seconds."""

    def __init__(self, url: str, ids: list[int], custom: dict, tokens: int, stop: threading.Event):
        super().__init__()
        self.times: list[float] = []
        self.last: dict = {}
        params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, "custom_params": custom}
        self._url, self._ended = url + "/generate", stop
        self._body = {"input_ids": ids, "sampling_params": params, "stream": True}
        self.start()

    def run(self) -> None:
        with requests.post(self._url, json=self._body, stream=True, timeout=600) as response:
            for line in response.iter_lines():
                if line.startswith(b"data: {"):
                    self.times.append(time.perf_counter())
                    self.last = json.loads(line[6:])
                if self._ended.is_set():
                    return


if __name__ == "__main__":
    main()
