"""Stock SGLang on the CPU platform alone equals Hugging Face to the token, for families its own torch attention fails on.

Prompts are prefilled in chunks of 256 tokens, so that windows and latents cross chunks.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.support import reference
from tests.support.answers import assert_answer
from tests.support.families import FAMILIES, latent, mixture, windowed
from tests.support.server import CONTROL, Server, serve
from tests.support.tiny_models import prompt_ids

LENGTHS = (40, 300, 900)
NEW_TOKENS = 8
ROWS = sorted({**mixture.FAMILIES, **windowed.FAMILIES, **latent.FAMILIES})
pytestmark = pytest.mark.slow  # test_families runs the same operators


class Stock:
    """A server without this package's feature, and the model it serves, read by Hugging Face."""

    def __init__(self, server: Server, model: torch.nn.Module, tolerance: float):
        self.server, self.tolerance = server, tolerance

        @functools.cache
        def greedy(ids: tuple[int, ...]):
            return reference.greedy(model, list(ids), range(len(ids)), len(ids), NEW_TOKENS)

        self._greedy = greedy

    def check(self, ids: list[int]) -> int:
        """Ask for the answer, which must be the reference's; returns how many tokens of the prompt were cached."""
        reply = self.server.generate(ids, params={"max_new_tokens": NEW_TOKENS}, return_logprob=True)
        assert_answer(reply, *self._greedy(tuple(ids)), self.tolerance)
        return reply["meta_info"]["cached_tokens"]


@pytest.fixture(scope="module", params=ROWS)
def stock(request, model_of, hugging_face, tmp_path_factory):
    family, path = FAMILIES[request.param], model_of(request.param)
    pressed = ("--max-total-tokens", "4000", "--chunked-prefill-size", "256", "--max-running-requests", "4")
    with serve(tmp_path_factory.mktemp("stock"), path, *pressed, *family.options, env={**CONTROL, **family.env}) as server:
        yield Stock(server, hugging_face(path), family.tolerance)


@pytest.mark.parametrize("length", LENGTHS)
def test_fresh_cached_and_extended(stock, length):
    stock.server.flush()
    ids = prompt_ids(length, seed=length)
    assert stock.check(ids) == 0
    assert stock.check(ids) == length - 1
    assert stock.check(ids + prompt_ids(70, seed=1)) >= length


def test_mixed_requests_under_eviction(stock):
    """Sixty requests, four at a time, whose prompts do not fit the pool together: slots of both pools are used again."""
    stock.server.flush()
    prompts = [prompt_ids(length, seed=length) for length in (900, 31, 300, 610, 97, 700, 16, 450, 820, 200, 64, 530)]
    stock.check(prompts[0])
    with ThreadPoolExecutor(4) as clients:
        hits = list(clients.map(stock.check, prompts[1:] * 5 + prompts[:5]))
    assert any(hits)
    assert hits[-5] == 0  # evicted: the pool was short
    stock.check(prompts[0])
