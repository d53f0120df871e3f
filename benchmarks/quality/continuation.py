"""Perplexity of the true continuation of held-out prose, dense against sparse.

Token `i` is scored by a request of its own, whose prompt is the text before it: exactly what a server answers on that prompt,
its own draft and selection included.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import requests
from tqdm import tqdm

from benchmarks.quality import ask, tasks
from benchmarks.quality.matrix import KEEP_RATIOS, SPECPREFILL
from benchmarks.quality.report import interval
from benchmarks.quality.results import Results
from benchmarks.quality.server import QualityServer

TOKENS = 12  # of each continuation


def run(server: QualityServer, tokenizer, length: int, documents: int, results: Results) -> None:
    """Negative log likelihood (nats) of each continuation token, one row per document, method and keep ratio."""
    count = functools.partial(_count, tokenizer)
    server.choose()
    todo = []
    for number in range(documents):
        example = tasks.continuation(length, number, count)
        for method, ratio in [(ask.DENSE, 1.0), *((SPECPREFILL, ratio) for ratio in KEEP_RATIOS)]:
            row = {"task": tasks.CONTINUATION, "length": length, "number": number, "method": method, "keep_ratio": ratio}
            if row not in results:
                todo.append((row, example))
    jobs: list[Callable[[], dict]] = [functools.partial(_row, server.url, tokenizer, row, example) for row, example in todo]
    with tqdm(total=len(jobs), desc="continuations") as bar:
        ask.ask_all(jobs, results.add, bar)


def table(rows: list[dict]) -> str:
    """Perplexity per keep ratio and the ratio to dense with a 95 % bootstrap interval, paired by document."""
    dense = {row["number"]: np.mean(row["nll"]) for row in rows if row["method"] == ask.DENSE}
    lines = ["| method | keep ratio | perplexity | sparse / dense |", "|---|---|---|---|"]
    lines.append(f"| {ask.DENSE} | 1 | {math.exp(np.mean(list(dense.values()))):.1f} | |")
    for ratio in KEEP_RATIOS:
        mine = {row["number"]: np.mean(row["nll"]) for row in rows if row["method"] != ask.DENSE and row["keep_ratio"] == ratio}
        more = [mine[number] - dense[number] for number in mine]
        low, high = interval(more)
        ratios = f"{math.exp(np.mean(more)):.3f} [{math.exp(low):.3f}, {math.exp(high):.3f}]"
        lines.append(f"| {SPECPREFILL} | {ratio:g} | {math.exp(np.mean(list(mine.values()))):.1f} | {ratios} |")
    return "\n".join(lines)


def _row(url: str, tokenizer, row: dict, example: tasks.Example) -> dict:
    ids = tokenizer.encode(example.prompt, add_special_tokens=False)
    true = tokenizer.encode(example.answer, add_special_tokens=False)[:TOKENS]
    custom: dict[str, object] = {"spec_prefill": row["method"] != ask.DENSE}
    if row["method"] != ask.DENSE:
        custom["spec_prefill_keep_ratio"] = row["keep_ratio"]
    return {**row, "prompt_tokens": len(ids), "nll": [_nll(url, ids + true[:at], true[at], custom) for at in range(len(true))]}


def _nll(url: str, ids: list[int], token: int, custom: dict) -> float:
    params = {"temperature": 0, "max_new_tokens": 1, "custom_params": custom}
    body = {"input_ids": ids, "sampling_params": params, "return_logprob": True, "token_ids_logprob": [token]}
    response = requests.post(url + "/generate", json=body, timeout=600)
    if response.status_code != 200:
        raise RuntimeError(f"/generate answered {response.status_code}: {response.text}")
    meta = response.json()["meta_info"]
    if meta["spec_prefill"]["applied"] != custom["spec_prefill"]:
        raise RuntimeError(f"a request was not served as asked: {meta['spec_prefill']}")
    return -meta["output_token_ids_logprobs"][0][0][0]


def _count(tokenizer, piece: str) -> int:
    return len(tokenizer.encode(piece, add_special_tokens=False))
