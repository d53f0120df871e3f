"""Speculative decoding of sparse requests: how much of its drafts is accepted, and what whole answers take.

`python -m benchmarks.speed.speculation` serves the shipped pair once without speculative decoding and once with each algorithm,
and asks for prose to be continued, dense and sparse by turns. Without an accelerator SGLang's kernels around drafts run in
Triton's interpreter: then acceptance means something, times do not.
"""

import argparse
import contextlib
import random
import tempfile
import time
from pathlib import Path

import requests
import torch
from tqdm import tqdm

from benchmarks import launch
from benchmarks.quality.results import Results, read
from benchmarks.speed.arguments import results as results_file
from benchmarks.speed.report import summary
from benchmarks.text import haystack

_STEPS = ["--speculative-num-steps", "3", "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4"]
ALGORITHMS: dict[str, list[str]] = {
    "none": [],
    "NGRAM": ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "8"],
    "STANDALONE": ["--speculative-algorithm", "STANDALONE", *_STEPS],
}
MODES = {"dense": {"spec_prefill": False}, "0.5": {}, "0.2": {}, "0.1": {}}


def main() -> None:
    """Prints acceptance and whole answers' times as ratios to the same prompt's without speculative decoding."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.speculation", description=__doc__)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--target", type=Path, default=launch.TARGET)
    parser.add_argument("--draft", type=Path, default=launch.DRAFT)
    launch.add_option(parser)
    parser.add_argument("--out", type=Path, default=results_file("speculation"))
    arguments = parser.parse_args()
    results = Results(arguments.out)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        env = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
        urls = {
            name: stack.enter_context(launch.serve(_command(arguments, flags), folder / f"{name}.log", env))
            for name, flags in ALGORITHMS.items()
        }
        prompts = [_prompt(arguments, number) for number in range(arguments.prompts)]
        for number, ids in enumerate(tqdm(prompts, desc="prompts")):
            for mode in MODES:
                for name, url in urls.items():
                    row = {"method": name, "settings": mode, "number": number, "length": arguments.length}
                    if row not in results:
                        results.add({**row, **_ask(url, ids, mode, arguments.output_tokens)})
    print(table(read(arguments.out)))


def table(rows: list[dict]) -> str:
    """Markdown: a row per algorithm and mode."""
    lines = ["| algorithm | | tokens per verification | same answers | whole request over none |", "|---|---|---|---|---|"]
    plain = {(row["settings"], row["number"]): row for row in rows if row["method"] == "none"}
    for name, mode in dict.fromkeys((row["method"], row["settings"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["settings"]) == (name, mode)]
        pairs = [(row, plain[mode, row["number"]]) for row in mine]
        same = sum(row["answer"] == other["answer"] for row, other in pairs)
        accepted = "" if name == "none" else summary(mine, lambda row: row["accept_length"])
        ratio = "" if name == "none" else summary(pairs, lambda pair: pair[0]["request_ms"] / pair[1]["request_ms"])
        lines.append(f"| {name} | {mode} | {accepted} | {same} of {len(mine)} | {ratio} |")
    return "\n".join(lines)


def _command(arguments: argparse.Namespace, flags: list[str]) -> list[str]:
    return launch.command(
        arguments.target,
        *launch.sparse_flags(arguments.draft, min_tokens=16),
        *flags,
        *arguments.option,
        "--sleep-on-idle",
        dtype="float32",
        max_total_tokens="20000",
        chunked_prefill_size="1024",
        max_running_requests="4",
    )


def _prompt(arguments: argparse.Namespace, number: int) -> list[int]:
    """Held-out prose, from another place each time."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.target)
    sentences = haystack.prose(random.Random(number), arguments.length, lambda some: len(tokenizer(some)["input_ids"]))
    return tokenizer(" ".join(sentences))["input_ids"]


def _ask(url: str, ids: list[int], mode: str, tokens: int) -> dict:
    launch.flush(url)
    custom = MODES[mode] or {"spec_prefill_keep_ratio": float(mode)}
    params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, "custom_params": custom}
    start = time.perf_counter()
    response = requests.post(url + "/generate", json={"input_ids": ids, "sampling_params": params}, timeout=600)
    took = (time.perf_counter() - start) * 1e3
    response.raise_for_status()
    reply = response.json()
    assert reply["meta_info"]["spec_prefill"]["applied"] == (mode != "dense")
    accepted = reply["meta_info"].get("spec_accept_length")
    return {"request_ms": round(took, 2), "accept_length": accepted, "answer": reply["output_ids"]}


if __name__ == "__main__":
    main()
