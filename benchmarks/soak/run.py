"""A server on this machine, the mix on it over loopback for a bounded time, and what must be true afterwards."""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests
from scipy.stats import linregress
from tqdm import tqdm

from benchmarks import launch
from benchmarks.soak.again import ask_again
from benchmarks.soak.clients import CLIENTS, Asked

_KINDS = {"dense": 20, "sparse": 40, "conversation": 12, "abort": 10, "disconnect": 8, "bad": 10}
RECOVERY = {"recovering": 40, "recovering conversation": 15, "recovering abort": 10}  # these besides
_SAMPLED = 0.1


@dataclass
class Outcome:
    """What the soak saw; `problems` must stay empty."""

    counts: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    sampled: list[list[Asked]] = field(default_factory=list)  # conversations to ask again
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, MiB


def run(
    folder: Path,
    minutes: float,
    in_flight: tuple[int, int],
    *,
    seed: int,
    pool: int,
    option: Sequence[str],
    pair: tuple[Path, Path] = (launch.TARGET, launch.DRAFT),
    more: Mapping[str, int] = {},
) -> Outcome:
    """A server of a target and its draft, the soak on it, and what its log counted; `more` kinds of requests than usual."""
    limits = {"chunked_prefill_size": "512", "max_total_tokens": str(pool), "max_running_requests": "32"}
    limits["schedule_conservativeness"] = "0.05"  # admit more than the pool holds
    words = launch.command(pair[0], *launch.sparse_flags(pair[1], min_tokens=200), *option, dtype="float32", **limits)
    # SGLang then retracts all the time, but not, as by default, every third decode: whoever it picks would starve
    retracting = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "20"}
    with launch.serve(words, folder / "server.log", retracting) as url:
        outcome = soak(url, minutes * 60, in_flight, seed, more)
        log = (folder / "server.log").read_text()
    outcome.counts["retractions"] = log.count("Testing retraction.") + log.count("KV cache pool is full. Retract")
    return outcome


def soak(url: str, seconds: float, in_flight: tuple[int, int], seed: int, more: Mapping[str, int] = {}) -> Outcome:
    """Run the mix for a time, then check what is left."""
    outcome, lock, start = Outcome(), threading.Lock(), time.monotonic()
    before, kinds = _states(url), {**_KINDS, **more}

    def client(number: int) -> None:
        draw = random.Random(f"{seed}/{number}")
        while (now := time.monotonic() - start) < seconds:
            if number >= _level(now, *in_flight):
                time.sleep(0.2)
                continue
            kind = draw.choices(list(kinds), kinds.values())[0]
            try:
                kept = CLIENTS[kind](url, draw)
            except Exception as error:
                with lock:
                    outcome.problems.append(f"{kind}: {type(error).__name__}: {error}")
                continue
            with lock:
                outcome.counts[kind] += 1
                # replicas remember their own conversations only, so a turn may be asked afresh by another one
                share = 3 * _SAMPLED if kind in RECOVERY else _SAMPLED
                if kept and draw.random() < share and ("conversation" not in kind or len(before) == 1):
                    outcome.sampled.append(kept)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(in_flight[1])]
    for thread in threads:
        thread.start()
    with tqdm(total=round(seconds), unit="s", desc="soak") as bar:
        while any(thread.is_alive() for thread in threads):
            outcome.memory.append((time.monotonic() - start, _memory()))
            bar.update(min(round(time.monotonic() - start), round(seconds)) - bar.n)
            time.sleep(1)
    outcome.counts.update(_recoveries(url))
    if failures := sum(_draft_errors(url)):
        outcome.problems.append(f"the draft failed for {failures} prompts")
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
        for verdict in ask_again(url, turns, replicas=len(before)):
            outcome.counts[verdict.counted] += 1
            if verdict.problem:
                outcome.problems.append(verdict.problem)
    launch.flush(url)
    for load in requests.get(url + "/v1/loads?include=core", timeout=60).json()["loads"]:
        if load["num_used_tokens"] or load["num_waiting_reqs"]:
            outcome.problems.append(f"not given back: {load}")
    if (after := _states(url)) != before:
        outcome.problems.append(f"the draft's pools were {before}, are {after}")


def _blocks(url: str) -> list[dict]:
    """What the server says of the plugin, per data-parallel rank."""
    return [one["spec_prefill"] for one in requests.get(url + "/server_info", timeout=60).json()["internal_states"]]


def _recoveries(url: str) -> Counter:
    """Answers that were asked what they lack, prompts that were prefilled whole, by what became of them."""
    found: Counter = Counter()
    for block in _blocks(url):
        for name in ("revivals", "backfills"):
            found.update({f"{name} {outcome}": count for outcome, count in block["counters"][name].items()})
    return found


def _draft_errors(url: str) -> list[int]:
    """Prompts that were served dense because their draft, its scores or their selection failed."""
    return [block["counters"]["requests"].get("dense:draft_error", 0) for block in _blocks(url)]


def _states(url: str) -> list[dict]:
    """Sizes, free slots and rows of the draft's pools, and turns in memory."""
    return [
        {name: value for name, value in block.items() if name.startswith("draft_") or "turns" in name} for block in _blocks(url)
    ]


def _memory() -> float:
    """Resident MiB of the server: every process this one has started."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20
