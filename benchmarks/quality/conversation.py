"""A conversation over one long document, every turn asking for another fact: what reuse and revival do to answers and work."""

import functools
import itertools
import json
import time
from collections.abc import Callable

import numpy as np
import requests
from tqdm import tqdm

from benchmarks.quality import tasks
from benchmarks.quality.report import interval
from benchmarks.quality.results import Results
from benchmarks.quality.server import QualityServer
from benchmarks.speed.report import summary

TURNS = 6
BACKFILL = "backfill between turns"
# what turns are selected from (`benchmarks.quality.plugin`), and what requests ask for
MODES: dict[str, tuple[str | None, dict]] = {
    "dense": (None, {"spec_prefill": False}),
    "fresh selection each turn": ("fresh", {}),
    "sticky without revival": ("no_revival", {}),
    "sticky with revival": ("sticky", {}),
    BACKFILL: ("sticky, whole later", {"spec_prefill_backfill": "turn"}),
}


def run(server: QualityServer, tokenizer, length: int, keep_ratio: float, conversations: int, results: Results) -> None:
    """One row per turn: whether it was right, tokens kept, tokens prefilled, time to the first token (ms)."""
    with tqdm(total=len(MODES) * conversations * TURNS, desc="turns") as bar:
        for number, (mode, (setting, custom)) in itertools.product(range(conversations), MODES.items()):
            row = {"method": mode, "task": "conversation", "length": length, "number": number, "keep_ratio": keep_ratio}
            if row in results:
                bar.update(TURNS)
                continue
            server.choose(turns=setting)
            asked = {"spec_prefill_keep_ratio": keep_ratio, **custom}
            for turn in _conversation(server.url, tokenizer, length, number, asked):
                results.add({"method": mode, "task": "conversation", **turn})
                bar.update()


def table(rows: list[dict]) -> str:
    """Per turn and mode: accuracy, tokens prefilled and TTFT, medians; of backfill also how near to dense."""
    turns = sorted({row["turn"] for row in rows})
    lines = ["| mode | figure | " + " | ".join(f"turn {turn + 1}" for turn in turns) + " |", "|---" * (2 + len(turns)) + "|"]
    for mode in MODES:
        mine = [[row for row in rows if row["method"] == mode and row["turn"] == turn] for turn in turns]
        if all(mine):
            lines.append(_line(mode, "accuracy", mine, _accuracy))
            lines.append(
                _line(mode, "tokens prefilled", mine, lambda some: f"{np.median([row['prefilled'] for row in some]):.0f}")
            )
            lines.append(_line(mode, "TTFT ms", mine, lambda some: f"{np.median([row['ttft_ms'] for row in some]):.0f}"))
        if mode == BACKFILL and all(mine):
            lines.append(_line(mode, "as dense, same history", mine, functools.partial(_as_dense, rows)))
            lines.append(_line(mode, "TTFT over dense", mine, functools.partial(_over_dense, rows)))
    return "\n".join(lines)


def _line(mode: str, figure: str, turns: list[list[dict]], show: Callable[[list[dict]], str]) -> str:
    return f"| {mode} | {figure} | " + " | ".join(show(some) for some in turns) + " |"


def _as_dense(rows: list[dict], some: list[dict]) -> str:
    """Of conversations whose earlier answers were the dense ones: how many answers are, token by token."""
    outputs = {(row["method"], row["number"], row["turn"]): row["output"] for row in rows if "output" in row}

    def history(mode: str, row: dict, turns: int) -> list:
        return [outputs.get((mode, row["number"], turn)) for turn in range(turns)]

    comparable = [row for row in some if history("dense", row, row["turn"]) == history(BACKFILL, row, row["turn"])]
    same = sum(outputs.get(("dense", row["number"], row["turn"])) == row["output"] for row in comparable)
    return f"{same} of {len(comparable)}"


def _over_dense(rows: list[dict], some: list[dict]) -> str:
    dense = {(row["number"], row["turn"]): row["ttft_ms"] for row in rows if row["method"] == "dense"}
    pairs = [(dense[row["number"], row["turn"]], row["ttft_ms"]) for row in some if (row["number"], row["turn"]) in dense]
    return summary(pairs, lambda pair: pair[1] / pair[0], 2)


def _accuracy(rows: list[dict]) -> str:
    low, high = interval(row["right"] for row in rows)
    return f"{np.mean([row['right'] for row in rows]):.0%} [{low:.0%}, {high:.0%}]"


def _conversation(url: str, tokenizer, length: int, number: int, custom: dict):
    count = functools.partial(_count, tokenizer)
    document, questions = tasks.conversation(length, number, count, TURNS)
    ids = tokenizer.encode(document, add_special_tokens=False)
    for turn, (question, answer) in enumerate(questions):
        ids = ids + tokenizer.encode("\n\n" + question, add_special_tokens=False)
        done = _completed(url)
        output, text, meta, ttft_ms = _stream(url, ids, custom, count(answer))
        example = tasks.Example("conversation", length, number, "", question, answer)
        yield {
            "length": length,
            "number": number,
            "turn": turn,
            "keep_ratio": custom["spec_prefill_keep_ratio"],
            "right": tasks.is_right(example, text),
            "kept_tokens": meta["spec_prefill"]["kept_tokens"],
            "prefilled": meta["spec_prefill"]["kept_tokens"] - meta["cached_tokens"],
            "draft_cached_tokens": meta["spec_prefill"]["draft_cached_tokens"],
            "ttft_ms": ttft_ms,
            "reason": meta["spec_prefill"]["reason"],
            "output": output,
        }
        ids = ids + output
        if "spec_prefill_backfill" in custom and meta["spec_prefill"]["applied"]:
            while _completed(url) == done:  # people read answers for longer
                time.sleep(0.05)


def _completed(url: str) -> int:
    """Prompts that were prefilled whole when there was time."""
    state = requests.get(url + "/server_info", timeout=60).json()["internal_states"][0]
    return state["spec_prefill"]["counters"]["backfills"].get("complete", 0)


def _stream(url: str, ids: list[int], custom: dict, tokens: int) -> tuple[list[int], str, dict, float]:
    params = {"temperature": 0, "max_new_tokens": tokens, "custom_params": custom}
    start, first, last = time.perf_counter(), 0.0, None
    with requests.post(
        url + "/generate", json={"input_ids": ids, "sampling_params": params, "stream": True}, stream=True, timeout=600
    ) as response:
        for line in response.iter_lines():
            if line.startswith(b"data: {"):
                first = first or (time.perf_counter() - start) * 1e3
                last = json.loads(line[6:])
    if last is None or "meta_info" not in last:
        raise RuntimeError(f"/generate did not answer: {last}")
    return last["output_ids"], last["text"], last["meta_info"], first


def _count(tokenizer, piece: str) -> int:
    return len(tokenizer.encode(piece, add_special_tokens=False))
