"""Asks one example of a server and scores the answer."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import requests
from tqdm import tqdm

from benchmarks.quality import tasks
from benchmarks.quality.controls import CONTROLS

IN_FLIGHT = 8
DENSE = "dense"
_BACKFILL = {"spec_prefill_backfill": "answer"}
PAPER_BACKFILLED = "specprefill_backfilled"  # the paper's rule
# the others best, with tokens that return while the answer is written
RECOVERED: dict[str, dict] = {
    **{f"revived_{every}": {"spec_prefill_revive_every": every} for every in (1, 2, 4)},
    "backfilled": _BACKFILL,
    PAPER_BACKFILLED: _BACKFILL,
    "revived_and_backfilled": {"spec_prefill_revive_every": 1, **_BACKFILL},
}
ALONE = ("backfilled", PAPER_BACKFILLED, "revived_and_backfilled")  # of which one is asked at a time: there must be time for it


def ask(url: str, example: tasks.Example, method: str, keep_ratio: float, count_tokens: Callable[[str], int]) -> dict:
    """One greedy `/generate`; a row of the results.

    Controls know nothing of where the question is, so for them the question is protected; for the product it is not.
    """
    custom: dict[str, object] = {"spec_prefill": method != DENSE}
    if method != DENSE:
        custom["spec_prefill_keep_ratio"] = keep_ratio
    custom |= RECOVERED.get(method, {})
    if method in CONTROLS:
        end = count_tokens(example.prompt)
        custom["spec_prefill_method"] = method
        custom["spec_prefill_protect"] = [end - count_tokens(example.question), end]
    params = {"temperature": 0, "max_new_tokens": count_tokens(example.answer) + 3, "custom_params": custom}
    body = {"text": example.prompt, "sampling_params": params}
    if method in RECOVERED:
        body["extra_key"] = f"{method} {keep_ratio}"  # what one leaves in the radix cache is none of the others' business
    response = requests.post(url + "/generate", json=body, timeout=600)
    if response.status_code != 200:
        raise RuntimeError(f"/generate answered {response.status_code}: {response.text}")
    reply = response.json()
    info = reply["meta_info"]["spec_prefill"]
    if info["applied"] != (method != DENSE):
        raise RuntimeError(f"a request of method {method} was served {'sparse' if info['applied'] else 'dense'}: {info}")
    return {
        "task": example.task,
        "length": example.length,
        "number": example.number,
        "method": method,
        "keep_ratio": keep_ratio if method != DENSE else 1.0,
        "prompt_tokens": info["prompt_tokens"],
        "kept_tokens": info["kept_tokens"],
        "backfilled": info["backfilled"],
        "predicted_tokens": info["predicted_tokens"],
        "output": reply["text"],
        "answer": example.answer,
        "right": tasks.is_right(example, reply["text"]),
        "recall": tasks.recall(example, reply["text"]),
    }


def ask_all(jobs: list[Callable[[], dict]], sink: Callable[[dict], None], bar: tqdm, in_flight: int = IN_FLIGHT) -> None:
    """Run jobs, a few in flight; every row goes to `sink` as soon as it is there. The first failure ends the run."""
    with ThreadPoolExecutor(in_flight) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            for future in futures:
                sink(future.result())
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
