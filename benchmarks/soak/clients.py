"""The kinds of requests in the mix. A client sends one, or a conversation, and returns what may be asked again."""

import random
import threading
from typing import NamedTuple

import requests

from benchmarks import launch

TIMEOUT_S = 180
_BAD = ({"spec_prefill_keep_ratio": 0}, {"spec_prefill_nonsense": 1}, {"spec_prefill_protect": [5, 2]}, {"spec_prefill": "yes"})
_REVIVE = {"spec_prefill_revive_every": 2, "spec_prefill_chunk_size": 4, "spec_prefill_pool_kernel": 5}  # random words
_BACKFILL = [{"spec_prefill_backfill": mode} for mode in ("turn", "answer")]
_RECOVERIES = (_REVIVE, *_BACKFILL, *({**_REVIVE, **one} for one in _BACKFILL))


class Asked(NamedTuple):
    """A prompt, its `custom_params` and the reply."""

    ids: list[int]
    custom: dict
    reply: dict


def generate(url: str, ids: list[int], custom: dict, tokens: int, **fields) -> dict:
    """The reply to one greedy request, with the positions that were kept and the scores of the chunks."""
    custom = {"spec_prefill_return_positions": True, "spec_prefill_return_scores": True, **custom}
    params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, "custom_params": custom}
    body = {"input_ids": ids, "sampling_params": params, **fields}
    response = requests.post(url + "/generate", json=body, timeout=TIMEOUT_S)
    if response.status_code != 200:
        raise RuntimeError(f"HTTP {response.status_code}: {response.text[:200]}")
    return response.json()


def _ids(draw: random.Random, low: int, high: int) -> list[int]:
    return launch.random_ids(draw, draw.randint(low, high))


def _dense(url: str, draw: random.Random) -> list[Asked]:
    ids, custom = _ids(draw, 20, 900), {"spec_prefill": False}
    return [Asked(ids, custom, generate(url, ids, custom, draw.randint(2, 64)))]


def _sparse(url: str, draw: random.Random) -> list[Asked]:
    ids, custom = _ids(draw, 220, 2500), {"spec_prefill_keep_ratio": draw.choice((0.1, 0.2, 0.5))}
    return [Asked(ids, custom, generate(url, ids, custom, draw.randint(2, 64)))]


def _recovering(url: str, draw: random.Random) -> list[Asked]:
    """Long answers of which some are asked what they lack, some have their prompts prefilled whole."""
    ids = _ids(draw, 220, 2500)
    custom = {"spec_prefill_keep_ratio": draw.choice((0.1, 0.2)), **draw.choice(_RECOVERIES)}
    return [Asked(ids, custom, generate(url, ids, custom, draw.randint(16, 200)))]


def _conversation(url: str, draw: random.Random) -> list[Asked]:
    return _turns(url, draw, {})


def _recovering_conversation(url: str, draw: random.Random) -> list[Asked]:
    return _turns(url, draw, draw.choice(_RECOVERIES))


def _turns(url: str, draw: random.Random, recovery: dict) -> list[Asked]:
    turns, ids, custom = [], _ids(draw, 300, 1200), {"spec_prefill_keep_ratio": 0.2, **recovery}
    for _ in range(draw.randint(2, 4)):
        reply = generate(url, ids, custom, draw.randint(3, 48))
        turns.append(Asked(ids, custom, reply))
        ids = ids + reply["output_ids"] + _ids(draw, 20, 150)
    return turns


def _abort(url: str, draw: random.Random) -> None:
    _aborted(url, draw, {})


def _recovering_abort(url: str, draw: random.Random) -> None:
    _aborted(url, draw, draw.choice(_RECOVERIES))


def _aborted(url: str, draw: random.Random, custom: dict) -> None:
    rid = f"abort-{draw.getrandbits(60)}"
    waiting = threading.Timer(
        draw.random() * 2, requests.post, [url + "/abort_request"], {"json": {"rid": rid}, "timeout": TIMEOUT_S}
    )
    waiting.start()
    reply = generate(url, _ids(draw, 220, 2500), {"spec_prefill_keep_ratio": 0.3, **custom}, 200, rid=rid)
    waiting.join()
    if reply["meta_info"]["finish_reason"]["type"] not in ("abort", "length"):
        raise RuntimeError(f"an aborted request ended with {reply['meta_info']['finish_reason']}")


def _disconnect(url: str, draw: random.Random) -> None:
    params = {"temperature": 0, "max_new_tokens": 200, "ignore_eos": True}
    body = {"input_ids": _ids(draw, 220, 2500), "sampling_params": params, "stream": True}
    with requests.post(url + "/generate", json=body, timeout=TIMEOUT_S, stream=True) as response:
        response.raise_for_status()
        for count, _ in enumerate(response.iter_lines()):
            if count >= draw.choice((0, 2, 9)):
                return


def _bad(url: str, draw: random.Random) -> None:
    params = {"max_new_tokens": 4, "custom_params": draw.choice(_BAD)}
    response = requests.post(
        url + "/generate", json={"input_ids": _ids(draw, 20, 40), "sampling_params": params}, timeout=TIMEOUT_S
    )
    if response.status_code != 400 or "spec_prefill" not in response.text:
        raise RuntimeError(f"a bad request was answered {response.status_code}: {response.text[:200]}")


CLIENTS = {
    "dense": _dense,
    "sparse": _sparse,
    "conversation": _conversation,
    "recovering": _recovering,
    "recovering conversation": _recovering_conversation,
    "abort": _abort,
    "recovering abort": _recovering_abort,
    "disconnect": _disconnect,
    "bad": _bad,
}
