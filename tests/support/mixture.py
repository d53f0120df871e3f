"""Thirty-two mixed requests that a server answers beside any option as without it, and gives back what they held."""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import requests

from tests.support.server import Server
from tests.support.streams import Stream
from tests.support.tiny_models import prompt_ids

LENGTHS = (90, 240, 410, 620)
DENSE = {"spec_prefill": False}


class Said(NamedTuple):
    """What a reply says that no option may change."""

    answer: list[int]
    applied: bool
    reason: str | None
    positions: list[int]


def ask_mixture(
    server: Server,
    lengths: tuple[int, ...] = LENGTHS,
    new_tokens: int = 10,
    workers: int = 12,
    between: Callable[[], object] = lambda: None,
) -> dict[str, Said]:
    """Ten dense and ten sparse requests at once beside four that are aborted; then four again, and four second turns.

    What is `between` happens before these eight.

    Every prompt begins with tokens of its own, so that what is found in caches does not depend on who was first.
    """

    def ask(name: str, ids: list[int], custom: dict) -> tuple[str, Said]:
        reply = server.generate(
            ids, custom={**custom, "spec_prefill_return_positions": True}, params={"max_new_tokens": new_tokens}
        )
        info = reply["meta_info"]["spec_prefill"]
        assert info["kept_tokens"] == len(info["positions"])
        return name, Said(reply["output_ids"], info["applied"], info["reason"], info["positions"])

    def ask_all(jobs: dict[str, tuple[list[int], dict]]) -> dict[str, Said]:
        with ThreadPoolExecutor(workers) as pool:
            return dict(pool.map(lambda item: ask(item[0], *item[1]), jobs.items()))

    def prompt(at: int) -> list[int]:
        return [10 + at, *prompt_ids(lengths[at // 2 % len(lengths)] + at, seed=5000 + at)]

    first = {}
    for at in range(20):
        ids = prompt(at)
        first[f"{at}"] = (ids, {"spec_prefill_keep_ratio": (0.1, 0.3, 0.5)[at % 3]} if at % 2 else DENSE)
    aborted = [Stream(server, prompt(at), {"spec_prefill_keep_ratio": 0.3}, 3000) for at in range(20, 24)]
    said = ask_all(first)
    for stream in aborted:
        requests.post(server.url + "/abort_request", json={"rid": stream.rid}, timeout=60)
    for stream in aborted:
        stream.join()
        assert stream.last is None or stream.last["meta_info"]["finish_reason"]["type"] == "abort"
    between()
    again = {f"{at} again": first[f"{at}"] for at in (0, 1, 3, 5)}
    for at in (2, 7, 9, 11):
        ids, custom = first[f"{at}"]
        again[f"{at} and on"] = ([*ids, *said[f"{at}"].answer, *prompt_ids(lengths[0], seed=5200 + at)], custom)
    return said | ask_all(again)


def assert_same_mixture(server: Server, wanted: dict[str, Said], but: Collection[str] = (), **how) -> None:
    """The same answers to the same kept tokens as `wanted`, sparse ones among them, and nothing is held afterwards.

    `but` are requests of which this server cannot keep the same tokens.
    """
    server.flush()
    before = server.draft_pools()
    said = ask_mixture(server, **how)
    assert sum(one.applied for one in wanted.values()) >= 12
    other = [f"{field} of {name}" for name, one in said.items() for field in one._fields if _differ(one, wanted[name], field)]
    assert [one for one in other if one.partition(" of ")[2] not in but] == []
    server.flush()
    assert server.load()["num_used_tokens"] == 0
    assert server.draft_pools() == before
    assert requests.get(server.url + "/health", timeout=60).status_code == 200


def _differ(one: Said, wanted: Said, field: str) -> bool:
    return getattr(one, field) != getattr(wanted, field)
