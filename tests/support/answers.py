"""The mixed workload that every scheduling mode must answer right, and what right is."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import reference
from tests.support.server import Server
from tests.support.tiny_models import EOS, prompt_ids

KEEP_RATIOS = (0.05, 0.1, 0.3, 0.5)
LENGTHS = (40, 333, 600, 1100)
CHUNK, MIN_TOKENS = 32, 16  # the servers' of the tests


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


def assert_answer(reply: dict, tokens: list[int], logprobs: list[float], tolerance: float) -> None:
    """A reply with logprobs has these tokens, and these logprobs to float noise."""
    assert reply["output_ids"] == tokens
    assert [one[0] for one in reply["meta_info"]["output_token_logprobs"]] == pytest.approx(logprobs, abs=tolerance)


class Judge:
    """Says which replies are wrong, with Hugging Face models alone.

    Parameters
    ----------
    target, draft : transformers models, float32
    layers : int, optional
        The target's first, which read for requests that ask for `early-layers`; all others are the draft's.
    """

    def __init__(self, target, draft, layers: int | None = None):
        self._greedy = functools.cache(lambda ids, positions, new: reference.greedy(target, ids, positions, len(ids), new)[0])
        readers = {
            "draft": lambda ids: reference.draft_importance(draft, ids, eos_ids=(EOS,)),
            "early-layers": lambda ids: reference.early_importance(target, ids, layers),
        }
        self._importance = functools.cache(lambda ids, method: readers[method](ids))

    def wrong(self, replies: list[dict], requests) -> list[int]:
        """Indices of replies that were not handled as asked, kept other tokens than the draft's choice (before which another
        request may have left an undropped prefix in the radix cache), or whose answer is not that of what they kept.
        """
        return [i for i, (reply, request) in enumerate(zip(replies, requests, strict=True)) if not self._right(reply, *request)]

    def _right(self, reply: dict, ids: list[int], custom: dict) -> bool:
        info = reply["meta_info"]["spec_prefill"]
        positions, prompt, sparse = info["positions"], tuple(ids), custom.get("spec_prefill", True)
        if sparse and info["reason"] == "prefix_cached":
            sparse = len(ids) - reply["meta_info"]["cached_tokens"] > MIN_TOKENS
        if sparse:
            importance = self._importance(prompt, custom.get("spec_prefill_method", "draft"))
            chosen = positions in _choices(importance, custom["spec_prefill_keep_ratio"], positions)
        else:
            chosen = positions == list(range(len(ids)))
        answer = self._greedy(prompt, tuple(positions), len(reply["output_ids"])) if chosen else None
        return info["applied"] == sparse and reply["output_ids"] == answer


def _choices(importance, keep_ratio: float, positions: list[int]) -> list[list[int]]:
    """What may be kept: the best chunks of the prompt, or after an undropped prefix the best chunks of the rest."""
    start = next(at for at, position in enumerate([*positions, -1]) if at != position)
    whole = start // CHUNK * CHUNK
    after = reference.select_chunks(importance[whole:], keep_ratio=keep_ratio) if whole < len(importance) else []
    return [
        reference.select_chunks(importance, keep_ratio=keep_ratio),
        [*range(start), *(whole + p for p in after if whole + p >= start)],
    ]
