"""Soak: a random mix of requests against a pool so small that eviction and retraction happen all the time.

`python -m benchmarks.soak` serves the shipped pair on this machine, talks to it over loopback for a bounded time, and fails
unless there were no server errors, no hangs, no wrong answers (sampled answers are asked again, alone on the idle server, and
must have equal tokens; a next turn may keep other tokens when it is asked alone, since what an earlier turn prefilled may have
been evicted under load: it is compared if it kept the same) and nothing is left in the pools. The slope of the server's memory
is printed.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests
from scipy.stats import linregress
from tqdm import tqdm

from benchmarks import launch

_PAIR = launch.ROOT / "benchmarks" / "pair"
_KINDS = {"dense": 20, "sparse": 40, "conversation": 12, "abort": 10, "disconnect": 8, "bad": 10}
_TIMEOUT_S = 180
IDS = 12_000  # that the pair has
_SAMPLED = 0.1
_BAD = ({"spec_prefill_keep_ratio": 0}, {"spec_prefill_nonsense": 1}, {"spec_prefill_protect": [5, 2]}, {"spec_prefill": "yes"})


@dataclass
class Outcome:
    """What the soak saw; `problems` must stay empty."""

    counts: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    sampled: list[list[tuple[list[int], dict, dict]]] = field(default_factory=list)  # conversations to ask again: the replies
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, MiB


def main() -> None:
    """Exit status 0 if the server held out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--in-flight", type=int, nargs=2, default=(8, 64), metavar=("LOW", "HIGH"), help="goes up and down")
    parser.add_argument("--pool", type=int, default=4000, help="--max-total-tokens")
    parser.add_argument("--seed", type=int, default=0)
    launch.add_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(
            Path(folder),
            arguments.minutes,
            arguments.in_flight,
            seed=arguments.seed,
            pool=arguments.pool,
            option=arguments.option,
        )
    print(json.dumps({"counts": outcome.counts, "memory_slope_mib_per_minute": slope(outcome.memory)}, indent=2))
    for problem in outcome.problems[:20]:
        print("problem: " + problem)
    sys.exit(1 if outcome.problems else 0)


def run(
    folder: Path,
    minutes: float,
    in_flight: tuple[int, int],
    *,
    seed: int,
    pool: int,
    option: Sequence[str],
    pair: tuple[Path, Path] = (_PAIR / "target", _PAIR / "draft"),
) -> Outcome:
    """A server of a target and its draft, the soak on it, and what its log counted."""
    limits = {"chunked_prefill_size": "512", "max_total_tokens": str(pool), "max_running_requests": "32"}
    limits["schedule_conservativeness"] = "0.05"  # admit more than the pool holds
    words = launch.command(pair[0], *launch.sparse_flags(pair[1], min_tokens=200), *option, dtype="float32", **limits)
    # SGLang then retracts all the time, but not, as by default, every third decode: whoever it picks would starve
    retracting = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "20"}
    with launch.serve(words, folder / "server.log", retracting) as url:
        outcome = soak(url, minutes * 60, in_flight, seed)
        log = (folder / "server.log").read_text()
    outcome.counts["retractions"] = log.count("Testing retraction.") + log.count("KV cache pool is full. Retract")
    outcome.counts["draft failures"] = log.count("Speculative prefill: drafting")
    return outcome


def soak(url: str, seconds: float, in_flight: tuple[int, int], seed: int) -> Outcome:
    """Run the mix for a time, then check what is left."""
    outcome, lock, start = Outcome(), threading.Lock(), time.monotonic()
    before = _states(url)

    def client(number: int) -> None:
        draw = random.Random(f"{seed}/{number}")
        while (now := time.monotonic() - start) < seconds:
            if number >= _level(now, *in_flight):
                time.sleep(0.2)
                continue
            kind = draw.choices(list(_KINDS), _KINDS.values())[0]
            try:
                kept = _CLIENTS[kind](url, draw)
            except Exception as error:
                with lock:
                    outcome.problems.append(f"{kind}: {type(error).__name__}: {error}")
                continue
            with lock:
                outcome.counts[kind] += 1
                # replicas remember their own conversations only, so a turn may be asked afresh by another one
                if kept and draw.random() < _SAMPLED and (kind != "conversation" or len(before) == 1):
                    outcome.sampled.append(kept)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(in_flight[1])]
    for thread in threads:
        thread.start()
    with tqdm(total=round(seconds), unit="s", desc="soak") as bar:
        while any(thread.is_alive() for thread in threads):
            outcome.memory.append((time.monotonic() - start, _memory()))
            bar.update(min(round(time.monotonic() - start), round(seconds)) - bar.n)
            time.sleep(1)
    _check_rest(url, before, outcome)
    return outcome


def _level(seconds: float, low: int, high: int) -> int:
    """Clients that are active: from low to high and back every minute."""
    return low + round((high - low) * (0.5 - 0.5 * math.cos(2 * math.pi * seconds / 60)))


def slope(memory: list[tuple[float, float]]) -> float:
    """MiB per minute of the second half, when caches have filled."""
    half = memory[len(memory) // 2 :]
    return round(60 * linregress([at for at, _ in half], [size for _, size in half]).slope, 2) if len(half) > 2 else 0.0


def _check_rest(url: str, before: list[dict], outcome: Outcome) -> None:
    launch.flush(url, deadline_s=120)
    for turns in tqdm(outcome.sampled, desc="asking again"):
        launch.flush(url)
        for number, (ids, custom, loaded) in enumerate(turns):
            wanted = loaded["output_ids"]
            reply = _generate(url, ids, custom, len(wanted))
            if number and _positions(reply) != _positions(loaded):
                outcome.counts["next turns that kept other tokens alone"] += 1
                continue
            outcome.counts["asked again"] += 1
            if (_positions(reply), reply["output_ids"]) != (_positions(loaded), wanted):
                outcome.problems.append(f"alone: {len(ids)} tokens, {custom}: {wanted} then {reply['output_ids']}")
    launch.flush(url)
    for load in requests.get(url + "/v1/loads?include=core", timeout=60).json()["loads"]:
        if load["num_used_tokens"] or load["num_waiting_reqs"]:
            outcome.problems.append(f"not given back: {load}")
    if (after := _states(url)) != before:
        outcome.problems.append(f"the draft's pools were {before}, are {after}")


def _states(url: str) -> list[dict]:
    """Sizes, free slots and rows of the draft's pools, and turns in memory, per data-parallel rank."""
    blocks = [one["spec_prefill"] for one in requests.get(url + "/server_info", timeout=60).json()["internal_states"]]
    return [{name: value for name, value in block.items() if name.startswith("draft_") or "turns" in name} for block in blocks]


def _positions(reply: dict) -> list[int]:
    return reply["meta_info"]["spec_prefill"]["positions"]


def _memory() -> float:
    """Resident MiB of the server: every process this one has started."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def _ids(draw: random.Random, low: int, high: int) -> list[int]:
    return [draw.randrange(3, IDS) for _ in range(draw.randint(low, high))]


def _generate(url: str, ids: list[int], custom: dict, tokens: int, **fields) -> dict:
    custom = {"spec_prefill_return_positions": True, **custom}
    params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, "custom_params": custom}
    body = {"input_ids": ids, "sampling_params": params, **fields}
    response = requests.post(url + "/generate", json=body, timeout=_TIMEOUT_S)
    if response.status_code != 200:
        raise RuntimeError(f"HTTP {response.status_code}: {response.text[:200]}")
    return response.json()


def _dense(url: str, draw: random.Random):
    ids, custom = _ids(draw, 20, 900), {"spec_prefill": False}
    return [(ids, custom, _generate(url, ids, custom, draw.randint(2, 64)))]


def _sparse(url: str, draw: random.Random):
    ids, custom = _ids(draw, 220, 2500), {"spec_prefill_keep_ratio": draw.choice((0.1, 0.2, 0.5))}
    return [(ids, custom, _generate(url, ids, custom, draw.randint(2, 64)))]


def _conversation(url: str, draw: random.Random):
    turns, ids, custom = [], _ids(draw, 300, 1200), {"spec_prefill_keep_ratio": 0.2}
    for _ in range(draw.randint(2, 4)):
        reply = _generate(url, ids, custom, draw.randint(3, 48))
        turns.append((ids, custom, reply))
        ids = ids + reply["output_ids"] + _ids(draw, 20, 150)
    return turns


def _abort(url: str, draw: random.Random) -> None:
    rid = f"abort-{draw.getrandbits(60)}"
    waiting = threading.Timer(
        draw.random() * 2, requests.post, [url + "/abort_request"], {"json": {"rid": rid}, "timeout": _TIMEOUT_S}
    )
    waiting.start()
    reply = _generate(url, _ids(draw, 220, 2500), {"spec_prefill_keep_ratio": 0.3}, 200, rid=rid)
    waiting.join()
    if reply["meta_info"]["finish_reason"]["type"] not in ("abort", "length"):
        raise RuntimeError(f"an aborted request ended with {reply['meta_info']['finish_reason']}")


def _disconnect(url: str, draw: random.Random) -> None:
    params = {"temperature": 0, "max_new_tokens": 200, "ignore_eos": True}
    body = {"input_ids": _ids(draw, 220, 2500), "sampling_params": params, "stream": True}
    with requests.post(url + "/generate", json=body, timeout=_TIMEOUT_S, stream=True) as response:
        for count, _ in enumerate(response.iter_lines()):
            if count >= draw.choice((0, 2, 9)):
                return


def _bad(url: str, draw: random.Random) -> None:
    params = {"max_new_tokens": 4, "custom_params": draw.choice(_BAD)}
    response = requests.post(
        url + "/generate", json={"input_ids": _ids(draw, 20, 40), "sampling_params": params}, timeout=_TIMEOUT_S
    )
    if response.status_code != 400 or "spec_prefill" not in response.text:
        raise RuntimeError(f"a bad request was answered {response.status_code}: {response.text[:200]}")


_CLIENTS = {
    "dense": _dense,
    "sparse": _sparse,
    "conversation": _conversation,
    "abort": _abort,
    "disconnect": _disconnect,
    "bad": _bad,
}

if __name__ == "__main__":
    main()
