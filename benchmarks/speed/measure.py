"""One comparison: the time to the first tokens of the same prompts, dense, sparse, and each part of sparse alone."""

import random
import re
import time
from pathlib import Path

import requests

from benchmarks import launch
from benchmarks.speed.servers import Servers, peak_mib

STAGES = ("draft", "lookahead", "score", "select")
_LINE = re.compile("Spec prefill batch.*" + ", ".join(rf"{stage} ms: ([\d.]+)" for stage in STAGES))


def compare(
    servers: Servers, length: int, keep_ratio: float, batch: int, number: int, wanted: frozenset[str] | None = None
) -> dict:
    """A row of milliseconds. All are measured one after another, in an order that changes with `number`; caches start empty.

    With `wanted`, only some are.

    `dense_again` repeats `dense` and shows the noise, `dense_with_plugin` is a dense request to the server with SpecPrefill.
    `draft_alone` and `target_alone` are stock SGLang with the draft on the prompts and with the target on prompts of as many
    tokens as were kept: the two parts of the bound. `floor` is a prompt of a few tokens on the draft: what HTTP, tokenizer
    manager and scheduler take whatever the prompt, with little of a model's own time; both parts contain it. `peak_mib` is the
    most memory that the server with SpecPrefill has had since it started.
    """
    draw = random.Random(f"{length}/{batch}/{number}")
    prompts = [launch.random_ids(draw, length) for _ in range(batch)]
    sparse, off = {"spec_prefill_keep_ratio": keep_ratio}, None
    times: dict[str, float] = {}
    stages: dict[str, float] = {}
    kept: list[int] = []

    def sparse_time() -> float:
        nonlocal kept
        seen = len(servers.log.read_text())
        took, replies = first_tokens_ms(servers.sparse, prompts, sparse)
        kept = [reply["meta_info"]["spec_prefill"]["kept_tokens"] for reply in replies]
        stages.update(_stages(servers.log, seen))
        return took

    times["sparse"] = sparse_time()  # first, and not counted: it says how many tokens are kept
    measurements = {
        "dense": lambda: first_tokens_ms(servers.dense, prompts, off)[0],
        "sparse": sparse_time,
        "draft_alone": lambda: first_tokens_ms(servers.draft, prompts, off)[0],
        "dense_again": lambda: first_tokens_ms(servers.dense, prompts, off)[0],
        "dense_with_plugin": lambda: first_tokens_ms(servers.sparse, prompts, {"spec_prefill": False})[0],
        "floor": lambda: first_tokens_ms(servers.draft, [launch.random_ids(draw, 4) for _ in prompts], off)[0],
        "target_alone": lambda: first_tokens_ms(servers.dense, [launch.random_ids(draw, count) for count in kept], off)[0],
    }
    names = [name for name in measurements if wanted is None or name in wanted]
    for name in rotated(names, number):
        times[name] = measurements[name]()
    identity = {"length": length, "keep_ratio": keep_ratio, "batch": batch, "number": number, "kept_tokens": kept}
    more = {"stages": stages, "peak_mib": peak_mib(servers.sparse)}
    return {**identity, **{name: round(took, 3) for name, took in times.items()}, **more}


def rotated(items: list, number: int) -> list:
    """The same, each time beginning with the next."""
    first = number % len(items)
    return items[first:] + items[:first]


def first_tokens_ms(url: str, prompts: list[list[int]], custom: dict | None) -> tuple[float, list[dict]]:
    """Milliseconds until every prompt of a batch has its first token, and the replies."""
    launch.flush(url)
    params: dict = {"temperature": 0, "max_new_tokens": 1, "ignore_eos": True}
    if custom is not None:
        params["custom_params"] = custom
    start = time.perf_counter()
    response = requests.post(url + "/generate", json={"input_ids": prompts, "sampling_params": params}, timeout=3600)
    took = (time.perf_counter() - start) * 1e3
    response.raise_for_status()
    return took, response.json()


def _stages(log: Path, seen: int) -> dict[str, float]:
    """Milliseconds per stage that the server's log has had since, all groups of the batch together."""
    found = [[float(value) for value in match] for match in _LINE.findall(log.read_text()[seen:])]
    return {stage: round(sum(values[at] for values in found), 3) for at, stage in enumerate(STAGES)}
