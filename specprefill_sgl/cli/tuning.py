"""What `tune` asks and compares: greedy answers of dense and sparse requests to the same prompts, token by token."""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import requests

_ALTERNATIVES = 20  # tokens whose log-probability is asked for, besides the greedy one
_CHANGED = 5  # prompts named
Interval = tuple[float, float, float]  # mean or median, and its 95 % bootstrap interval


class TuneError(RuntimeError):
    """The server cannot be asked; the message is one sentence."""


class Answer(msgspec.Struct, frozen=True):
    """A greedy answer.

    Attributes
    ----------
    tokens : list of int
    logprobs : list of dict
        Of each place, token -> log-probability, nats: of the greedy token and the next best.
    ttft_s : float
    reply : dict
        The reply object, without lists.
    """

    tokens: list[int]
    logprobs: list[dict[int, float]]
    ttft_s: float
    reply: dict[str, Any]


class Row(msgspec.Struct, frozen=True):
    """A prompt's answer beside its dense one.

    Attributes
    ----------
    prompt : int
        Its number, from 0.
    keep_ratio : float or None
        None: dense, asked again.
    kept : float
        Share of the prompt that was prefilled.
    same : float
        Share of the dense answer's tokens before the first difference.
    loss : float
        What a token of the dense answer costs more here, nats, up to the first difference, that included. A token that is not
        among the best counts as the last of them, which is too little.
    speedup : float
        TTFT dense / TTFT here.
    """

    prompt: int
    keep_ratio: float | None
    kept: float
    same: float
    loss: float
    speedup: float


class Summary(msgspec.Struct, frozen=True):
    """All prompts at one keep ratio; `answers` are the same throughout. Means, of `speedup` the median."""

    keep_ratio: float | None
    prompts: int
    answers: int
    kept: float
    same: Interval
    loss: Interval
    speedup: Interval


class Asked(msgspec.Struct, frozen=True):
    """What was asked.

    Attributes
    ----------
    rows : list of Row
    dense : dict of str to list of int
        Prompts that cannot be sparse, by the reason.
    """

    rows: list[Row]
    dense: dict[str, list[int]]

    @property
    def summaries(self) -> list[Summary]:
        """Dense asked again, then by keep ratio."""
        ratios = dict.fromkeys(row.keep_ratio for row in self.rows)
        return [summary(ratio, [row for row in self.rows if row.keep_ratio == ratio]) for ratio in ratios]

    @property
    def again(self) -> Summary:
        """How far dense agrees with itself."""
        return self.summaries[0]

    def proposed(self, tolerance: float) -> Summary | None:
        """The smallest keep ratio whose answers agree about as well as dense ones with each other."""
        again, *others = self.summaries
        return next((one for one in others if one.same[0] >= again.same[0] - tolerance), None)

    def changed_most(self, ratio: float | None) -> list[int]:
        """Numbers of prompts with another answer, the most changed first."""
        changed = (row for row in self.rows if row.keep_ratio == ratio and row.same < 1)
        rows = sorted(changed, key=lambda row: (row.same, -row.loss))
        return [row.prompt for row in rows[:_CHANGED]]


def as_chats(url: str, prompts: Sequence[str], tokenizer: str | None) -> list[list[int]]:
    """Ids of prompts as users' messages in the chat template of the server's model."""
    from transformers import AutoTokenizer

    from specprefill_sgl.playground.prompt import compose

    if tokenizer is None:
        info = _get(url, "/server_info")
        tokenizer = info["tokenizer_path"] or info["model_path"]
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return [compose(loaded, prompt, "", chat=True).ids for prompt in prompts]


def ask_all(url: str, prompts: Sequence[Any], ratios: Sequence[float], tokens: int, custom: dict[str, Any]) -> Asked:
    """Every prompt dense twice and at each keep ratio, one request at a time, nothing in a cache.

    Raises
    ------
    TuneError
        If the server cannot be reached, has no Speculative Prefill, or refuses a request.
    """
    from tqdm import tqdm

    if "spec_prefill" not in _get(url, "/server_info")["internal_states"][0]:
        raise TuneError(f"{url} was started without --spec-prefill.")
    rows: list[Row] = []
    dense: dict[str, list[int]] = defaultdict(list)
    for number, prompt in enumerate(tqdm(prompts, desc="prompts")):
        first, again = (ask(url, prompt, tokens, {"spec_prefill": False}) for _ in range(2))
        found = [compared(number, None, first, again)]
        for ratio in sorted(ratios):
            fields = {f"spec_prefill_{name}": value for name, value in {**custom, "keep_ratio": ratio}.items()}
            sparse = ask(url, prompt, tokens, fields)
            if not sparse.reply["applied"]:
                dense[sparse.reply["reason"]].append(number)
                break
            found.append(compared(number, ratio, first, sparse))
        else:
            rows += found
    return Asked(rows, dict(dense))


def ask(url: str, prompt: Any, tokens: int, custom: dict[str, Any]) -> Answer:
    """One streamed request; a prompt is a text or a list of ids."""
    params = {"temperature": 0, "max_new_tokens": tokens, "custom_params": custom}
    body = {"sampling_params": params, "stream": True, "return_logprob": True, "top_logprobs_num": _ALTERNATIVES}
    body |= {"extra_key": uuid4().hex, "text" if isinstance(prompt, str) else "input_ids": prompt}
    start, ttft_s, last = time.perf_counter(), 0.0, b""
    try:
        with requests.post(url + "/generate", json=body, stream=True, timeout=3600) as response:
            if response.status_code != 200:
                raise TuneError(f"{url} answered {response.status_code}: {response.text}")
            for line in response.iter_lines():
                if line.startswith(b"data: {"):
                    ttft_s = ttft_s or time.perf_counter() - start
                    last = line[6:]
    except requests.RequestException as error:
        raise TuneError(f"{url} does not answer: {error}.") from None
    info = msgspec.json.decode(last or b"{}").get("meta_info")
    if info is None:
        raise TuneError(f"{url} answered: {last.decode()}")
    greedy, others = info["output_token_logprobs"], info["output_top_logprobs"]
    logprobs = [{token: logprob for logprob, token, _ in [*best, own]} for own, best in zip(greedy, others, strict=True)]
    return Answer([token for _, token, _ in greedy], logprobs, ttft_s, info["spec_prefill"])


def compared(number: int, ratio: float | None, dense: Answer, other: Answer) -> Row:
    """An answer beside the dense one to the same prompt."""
    length = min(len(dense.tokens), len(other.tokens))
    equal = next((at for at in range(length) if dense.tokens[at] != other.tokens[at]), length)
    losses = [
        dense.logprobs[at][token] - other.logprobs[at].get(token, min(other.logprobs[at].values()))
        for at, token in enumerate(dense.tokens[: min(equal + 1, length)])
    ]
    longest = max(len(dense.tokens), len(other.tokens), 1)
    loss = float(np.mean(losses)) if losses else 0.0
    return Row(number, ratio, other.reply["keep_ratio"], equal / longest, loss, dense.ttft_s / other.ttft_s)


def summary(ratio: float | None, rows: Sequence[Row]) -> Summary:
    """Over prompts."""
    same, loss, speedup = ([getattr(row, name) for row in rows] for name in ("same", "loss", "speedup"))
    return Summary(
        keep_ratio=ratio,
        prompts=len(rows),
        answers=sum(value == 1 for value in same),
        kept=float(np.mean([row.kept for row in rows])),
        same=interval(same, np.mean),
        loss=interval(loss, np.mean),
        speedup=interval(speedup, np.median),
    )


def interval(values: Sequence[float], statistic: Any) -> Interval:
    """A statistic with its 95 % percentile bootstrap interval; of one prompt or equal ones it has no width."""
    from scipy.stats import bootstrap

    middle = float(statistic(values))
    if len(set(values)) < 2:
        return middle, middle, middle
    found = bootstrap((values,), statistic, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return middle, float(found.low), float(found.high)


def _get(url: str, path: str) -> dict[str, Any]:
    try:
        response = requests.get(url + path, timeout=60)
        response.raise_for_status()
        return response.json()
    except requests.RequestException as error:
        raise TuneError(f"{url} does not answer: {error}.") from None
