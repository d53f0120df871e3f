"""Pipeline stages and shortened prompts: time to first token with one stage and with two, in static and dynamic chunks.

`python -m benchmarks.speed.pipeline` asks the same prompts of all servers by turns, dense and at each keep ratio. A stage has
half the cores, as if that were a device: the server with one stage has one such device, the others have two.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from benchmarks import launch
from benchmarks.quality.results import Results, read
from benchmarks.speed import arguments as shared
from benchmarks.speed import pairs
from benchmarks.speed.measure import first_tokens_ms, rotated
from benchmarks.speed.report import summary
from benchmarks.speed.servers import DUMMY, Sizes, command

STAGES: dict[str, tuple[str, ...]] = {
    "one stage": (),
    "two stages": ("--pp-size", "2"),
    "two stages, dynamic chunks": ("--pp-size", "2", "--enable-dynamic-chunking"),
}
_DENSE = {"spec_prefill": False}
_CHUNK = re.compile(r"^\[[-\d]+ [:\d]+(?: PP0)?\] Prefill batch.*?#new-token: (\d+)", re.MULTILINE)  # the first stage's


def main() -> None:
    """One row per server, request and round; prints medians, and ratios within a round."""
    parser = shared.parser("pipeline", __doc__)
    parser.set_defaults(chunked_prefill_size=512)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096])
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--servers", nargs="+", choices=STAGES, default=list(STAGES))
    arguments = parser.parse_args()
    if arguments.pair in pairs.TRAINED:
        parser.error(f"--pair {arguments.pair}: its embeddings are tied, which SGLang's Llama cannot have on two stages")
    out = shared.rows_of("pipeline", arguments)
    results = Results(out)
    sizes = shared.sizes(arguments, max(arguments.lengths) + 64)
    with tempfile.TemporaryDirectory() as folder, _serve(arguments, Path(folder), sizes) as urls:
        for length, number in tqdm(list(itertools.product(arguments.lengths, range(-1, arguments.rounds))), desc="rounds"):
            cells = list(itertools.product([1.0, *arguments.keep_ratios], urls))
            for keep_ratio, name in rotated(cells, max(number, 0)):
                row = {"method": name, "length": length, "keep_ratio": keep_ratio, "number": number}
                row["settings"] = {"chunked_prefill_size": arguments.chunked_prefill_size, "options": arguments.option}
                if row not in results:
                    measured = _measure(*urls[name], length, keep_ratio, number)
                    if number >= 0:  # the first round is not kept
                        results.add({**row, **measured})
    print(table(read(out)))


def table(rows: list[dict]) -> str:
    """Markdown: milliseconds; how much faster than one stage, and than dense with the same stages, within each round."""
    times = {_cell(row): row["ttft_ms"] for row in rows}
    head = ("prompt", "keep ratio", "server", "TTFT ms", "one stage / this", "dense / this", "chunks of the target")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for length, keep_ratio, name in sorted({(row["length"], row["keep_ratio"], row["method"]) for row in rows}, key=_place):
        mine = [row for row in rows if (row["length"], row["keep_ratio"], row["method"]) == (length, keep_ratio, name)]
        chunks = ", ".join(map(str, mine[-1]["chunks"]))
        ratios = [_over(times, mine, method=next(iter(STAGES))), _over(times, mine, keep_ratio=1.0)]
        figures = (summary(mine, lambda row: row["ttft_ms"], 0), *ratios, chunks)
        lines.append(f"| {length} | {'dense' if keep_ratio == 1 else keep_ratio} | {name} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def _place(cell: tuple[int, float, str]) -> tuple[int, float, int]:
    length, keep_ratio, name = cell
    return length, -keep_ratio, list(STAGES).index(name)


def _cell(row: dict) -> tuple:
    settings = row["settings"]["chunked_prefill_size"]
    return row["method"], row["length"], row["keep_ratio"], row["number"], settings


def _over(times: dict[tuple, float], mine: list[dict], **other: object) -> str:
    """How many times the other took of each."""
    pairs = [(times.get(_cell({**row, **other})), row["ttft_ms"]) for row in mine]
    known = [(theirs, own) for theirs, own in pairs if theirs is not None]
    return summary(known, lambda pair: pair[0] / pair[1]) if known else ""


@contextlib.contextmanager
def _serve(arguments: argparse.Namespace, folder: Path, sizes: Sizes) -> Iterator[dict[str, tuple[str, Path]]]:
    """URL and log of each server; those that are idle sleep."""
    target, draft = pairs.write(arguments.pair, folder)
    config = json.loads((target / "config.json").read_text())
    # SGLang's Llama with tied embeddings has none on its last stage
    (target / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    sparse = launch.sparse_flags(draft, min_tokens=16, draft_max_tokens=sizes.tokens)
    cores = sorted(os.sched_getaffinity(0))
    share = [",".join(map(str, cores[first : first + len(cores) // 2])) for first in (0, len(cores) // 2)]
    with contextlib.ExitStack() as stack:
        urls = {}
        for name in arguments.servers:
            log = folder / f"{name}.log"
            env = {"SGLANG_CPU_OMP_THREADS_BIND": "|".join(share if "--pp-size" in STAGES[name] else share[:1])}
            words = command(target, sizes, *DUMMY, *sparse, *STAGES[name], *arguments.option)
            urls[name] = stack.enter_context(launch.serve(words, log, env)), log
            if "--enable-dynamic-chunking" in STAGES[name] and "Predictor ready" not in log.read_text():
                print("SGLang could not fit a latency to chunk sizes on this machine: these chunks are static too.")
        yield urls


def _measure(url: str, log: Path, length: int, keep_ratio: float, number: int) -> dict:
    """Milliseconds of one prompt that nothing has read before, and the chunks its target's prefill took."""
    prompt = launch.random_ids(random.Random(f"{length}/{number}"), length)
    custom = _DENSE if keep_ratio == 1 else {"spec_prefill_keep_ratio": keep_ratio}
    seen = len(log.read_text())
    took, (reply,) = first_tokens_ms(url, [prompt], custom)
    chunks = _CHUNK.findall(log.read_text()[seen:])
    kept = reply["meta_info"]["spec_prefill"].get("kept_tokens")
    return {"ttft_ms": round(took, 3), "kept_tokens": kept, "chunks": list(map(int, chunks))}


if __name__ == "__main__":
    main()
