"""What it costs to bring dropped tokens back: TTFT, gaps between tokens of the stream and of a neighbour's, tokens computed.

`python -m benchmarks.speed.recovery` sends the same prompt by turns with each setting, beside a short dense stream that decodes
all the time. Gaps are counted while the prompt's answer is written. Trained pairs are asked for six keys at once, others read
random tokens.
"""

import argparse
import functools
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import requests
from tqdm import tqdm

from benchmarks import launch
from benchmarks.interleaving import Stream, gaps_between
from benchmarks.quality.results import Results, read
from benchmarks.quality.tasks import example
from benchmarks.speed import arguments as shared
from benchmarks.speed import pairs
from benchmarks.speed.report import summary
from benchmarks.speed.servers import serve

# chunks of a random draft hardly ever stand out; these make some
_SHARP = {"spec_prefill_chunk_size": 4, "spec_prefill_pool_kernel": 1}
_TASK = "six_queries"  # whose later values the first ones do not ask for
SETTINGS: dict[str, dict] = {
    "dense": {"spec_prefill": False},
    "sparse": {},
    "revive every token": {"spec_prefill_revive_every": 1},
    "revive every 4": {"spec_prefill_revive_every": 4},
    "revive every 16": {"spec_prefill_revive_every": 16},
    "backfill turn": {"spec_prefill_backfill": "turn"},
    "backfill answer": {"spec_prefill_backfill": "answer"},
    "both": {"spec_prefill_revive_every": 4, "spec_prefill_backfill": "answer"},
}


def main() -> None:
    """One row per setting and round; prints medians, and what a setting adds to a round's sparse answer."""
    parser = shared.parser("recovery", __doc__)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--pieces", type=int, default=512, help="--spec-prefill-backfill-tokens")
    arguments = parser.parse_args()
    arguments.option = (*arguments.option, "--spec-prefill-backfill-tokens", str(arguments.pieces))
    out = shared.rows_of("recovery", arguments)
    results = Results(out)
    sizes = shared.sizes(arguments, 4 * (arguments.length + 2048))
    with tempfile.TemporaryDirectory() as folder, serve(arguments.pair, Path(folder), sizes, with_draft=False) as servers:
        _round(servers.sparse, arguments, "sparse", -1)  # warm
        for number in tqdm(range(arguments.rounds), desc="rounds"):
            for setting in arguments.settings:
                row = {"method": setting, "number": number, "length": arguments.length}
                row["settings"] = {"output_tokens": arguments.output_tokens, "pieces": arguments.pieces}
                if row not in results:
                    results.add({**row, **_round(servers.sparse, arguments, setting, number)})
    print(table(read(out)))


def table(rows: list[dict]) -> str:
    """Markdown: medians over rounds; percentiles over all gaps; whole answers as ratios to the same round's sparse one."""
    head = ("setting", "pieces", "TTFT ms", "own ITL p50", "p99", "neighbour's p50", "p99", "answer over sparse")
    head += ("target computes", "draft reads", "returned", "dense from")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for pieces, setting in dict.fromkeys((row["settings"]["pieces"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["settings"]["pieces"], row["method"]) == (pieces, setting)]
        lines.append(f"| {setting} | {pieces} | " + " | ".join(_figures(rows, mine)) + " |")
    return "\n".join(lines)


def _figures(rows: list[dict], mine: list[dict]) -> list[str]:
    gaps = [np.concatenate([row[name] for row in mine]) for name in ("own_itl_ms", "other_itl_ms")]
    percentiles = [f"{np.percentile(some, percent):.0f}" for some in gaps for percent in (50, 99)]
    sparse = {(row["number"], row["settings"]["pieces"]): row["answer_ms"] for row in rows if row["method"] == "sparse"}
    pairs = [(sparse.get((row["number"], row["settings"]["pieces"])), row["answer_ms"]) for row in mine]
    known = [pair for pair in pairs if pair[0] is not None]
    ratio = summary(known, lambda pair: pair[1] / pair[0], 2) if known else ""

    def middle(name: str) -> str:
        values = [row[name] for row in mine if row[name] is not None]
        return f"{np.median(values):.0f}" if values else ""

    ends = ["computed_tokens", "draft_tokens", "revived_tokens", "backfilled"]
    return [middle("ttft_ms"), *percentiles, ratio, *(middle(name) for name in ends)]


def _round(url: str, arguments: argparse.Namespace, setting: str, number: int) -> dict:
    launch.flush(url, deadline_s=120)
    draw, stop, before = random.Random(number), threading.Event(), _tokens(url)
    other = Stream(url, launch.random_ids(draw, 64), {"spec_prefill": False}, 4000, stop)
    while len(other.times) < 4:
        time.sleep(0.01)
    start = time.perf_counter()
    custom = SETTINGS[setting] | ({} if arguments.pair in pairs.TRAINED or setting == "dense" else _SHARP)
    mine = Stream(url, _prompt(arguments, draw, number), custom, arguments.output_tokens, threading.Event())
    mine.join()
    stop.set()
    other.join()
    after, meta = _tokens(url), mine.last["meta_info"]
    first, last = mine.times[0], mine.times[-1]
    return {
        "ttft_ms": round((first - start) * 1e3, 2),
        "answer_ms": round((last - first) * 1e3, 2),
        "own_itl_ms": [round(gap * 1e3, 2) for gap in gaps_between(mine.times, first, last)],
        "other_itl_ms": [round(gap * 1e3, 2) for gap in gaps_between(other.times, first, last)],
        "computed_tokens": sum(after.get(name, 0) - before.get(name, 0) for name in ("kept", "revived", "backfilled"))
        - 64,  # the neighbour's
        "draft_tokens": after.get("read", 0) - before.get("read", 0),
        **{name: meta["spec_prefill"].get(name) for name in ("revived_tokens", "backfilled", "asked_after", "revived_after")},
    }


def _prompt(arguments: argparse.Namespace, draw: random.Random, number: int) -> list[int]:
    if arguments.pair not in pairs.TRAINED:
        return launch.random_ids(draw, arguments.length)
    tokenizer = _tokenizer(arguments.pair)
    return tokenizer(example(_TASK, arguments.length, number, lambda text: len(tokenizer(text)["input_ids"])).prompt)[
        "input_ids"
    ]


@functools.cache
def _tokenizer(pair: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pairs.TRAINED[pair]()[0])


def _tokens(url: str) -> dict[str, int]:
    state = requests.get(url + "/server_info", timeout=60).json()["internal_states"][0]["spec_prefill"]["counters"]
    return {**state["prompt_tokens"], **state["draft_tokens"]}


if __name__ == "__main__":
    main()
