"""What every target and draft of the matrix must show on a real server, against Hugging Face."""

import random
from concurrent.futures import ThreadPoolExecutor

import torch

from tests.support import reference
from tests.support.answers import assert_answer
from tests.support.server import Server
from tests.support.tiny_models import EOS, VOCABULARY, prompt_ids

NEW_TOKENS = 8
KEEP_RATIO = 0.3
SPARSE = {"spec_prefill_keep_ratio": KEEP_RATIO, "spec_prefill_return_positions": True, "spec_prefill_return_scores": True}
DENSE = {"spec_prefill": False}


class Matrix:
    """A server with a target and a draft, and the same two in transformers.

    Parameters
    ----------
    server : Server
    target, draft : transformers models, float32
    tolerance : float
        Largest difference of a logprob.
    has_draft_cache : bool
        Whether the draft keeps prefixes.
    importance : callable, optional
        Of each token of a prompt, float32 [N]; by default the draft's by the paper's rule.
    """

    def __init__(self, server: Server, target, draft, tolerance: float, has_draft_cache: bool = True, importance=None):
        self.server, self._target, self._tolerance = server, target, tolerance
        self._importance = importance or (lambda ids: reference.draft_importance(draft, ids, eos_ids=(EOS,)))
        self.has_draft_cache = has_draft_cache

    def ask(self, ids: list[int], custom: dict | None = SPARSE, new_tokens: int = NEW_TOKENS) -> dict:
        """A greedy request with the logprobs of its answer."""
        return self.server.generate(ids, custom=custom, params={"max_new_tokens": new_tokens}, return_logprob=True)

    def sparse(self, ids: list[int], **custom) -> dict:
        """Ask, require that tokens were dropped, and that the answer is Hugging Face's to what was kept."""
        reply = self.ask(ids, {**SPARSE, **custom})
        info = reply["meta_info"]["spec_prefill"]
        assert info["applied"], info
        assert info["kept_tokens"] < len(ids)
        self.answers(ids, info["positions"], reply)
        return reply

    def dense(self, ids: list[int]) -> dict:
        """Ask without Speculative Prefill; the answer is Hugging Face's to the whole prompt."""
        reply = self.ask(ids, DENSE)
        self.answers(ids, range(len(ids)), reply)
        return reply

    def answers(self, ids: list[int], positions, reply: dict) -> None:
        """To the token, and to float noise in the logprobs."""
        wanted = reference.greedy(self._target, ids, positions, len(ids), len(reply["output_ids"]))
        assert_answer(reply, *wanted, self._tolerance)

    def scores(self, reply: dict, ids: list[int]) -> None:
        """The draft's chunk scores are those of transformers."""
        wanted = torch.stack([chunk.mean() for chunk in self._importance(ids).split(32)])
        info = reply["meta_info"]["spec_prefill"]
        torch.testing.assert_close(torch.tensor(info["scores"]), wanted, rtol=1e-4, atol=0)

    def mixed(self, count: int, seed: int, workers: int = 8, longest: int = 900) -> list[tuple[list[int], dict, dict]]:
        """Sparse and dense requests of random lengths at once: (prompt, custom parameters, reply) each."""
        draw = random.Random(seed)
        jobs = [
            (
                prompt_ids(draw.randrange(100, longest), seed=1000 * seed + at),
                SPARSE if at % 2 else DENSE,
                draw.randrange(1, 60),
            )
            for at in range(count)
        ]
        with ThreadPoolExecutor(workers) as pool:
            replies = list(pool.map(lambda job: self.ask(*job), jobs))
        return [(ids, custom, reply) for (ids, custom, _), reply in zip(jobs, replies, strict=True)]


def new_text(reply: dict, length: int, seed: int) -> list[int]:
    """An answer and more text after it: how a conversation goes on."""
    assert all(token < VOCABULARY for token in reply["output_ids"])
    return reply["output_ids"] + prompt_ids(length, seed=seed)
