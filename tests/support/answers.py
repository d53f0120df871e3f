"""The mixed workload that every scheduling mode must answer alike, and how replies are compared."""

from concurrent.futures import ThreadPoolExecutor

from tests.support.server import Server
from tests.support.tiny_models import prompt_ids

KEEP_RATIOS = (0.05, 0.1, 0.3, 0.5)
LENGTHS = (40, 333, 600, 1100)


def mixed_requests(count: int = 32) -> list[tuple[list[int], dict]]:
    """Prompts with their `custom_params`: every other one sparse, keep ratios and lengths in turn, a shared prefix in some."""
    shared = prompt_ids(96, seed=1000)
    requests = []
    for i in range(count):
        ids = prompt_ids(LENGTHS[i // 2 % len(LENGTHS)], seed=i)
        if i % 3 == 0:
            ids = shared + ids
        custom = {"spec_prefill_keep_ratio": KEEP_RATIOS[i // 2 % 4]} if i % 2 else {"spec_prefill": False}
        requests.append((ids, {**custom, "spec_prefill_return_positions": True}))
    return requests


def one_at_a_time(server: Server, requests, max_new_tokens: int = 12) -> list[dict]:
    """Replies to requests sent one after the other."""
    return [server.generate(ids, custom=custom, params={"max_new_tokens": max_new_tokens}) for ids, custom in requests]


def all_at_once(server: Server, requests, max_new_tokens: int = 12) -> list[dict]:
    """Replies to requests that are all in flight together."""
    with ThreadPoolExecutor(len(requests)) as pool:
        sent = [
            pool.submit(server.generate, ids, custom=custom, params={"max_new_tokens": max_new_tokens})
            for ids, custom in requests
        ]
        return [future.result() for future in sent]


def gist(reply: dict) -> tuple:
    """What must not depend on scheduling: output tokens, whether and what was kept."""
    info = reply["meta_info"]["spec_prefill"]
    return tuple(reply["output_ids"]), info["applied"], info["kept_tokens"], tuple(info["positions"])


def differences(got: list[dict], wanted: list[dict]) -> list[int]:
    """Indices of replies that differ."""
    return [i for i, (one, other) in enumerate(zip(got, wanted, strict=True)) if gist(one) != gist(other)]
