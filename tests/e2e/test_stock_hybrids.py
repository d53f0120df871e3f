"""Stock SGLang on the CPU platform serves hybrids of recurrent and full attention exactly: no draft, only torch operators.

Prompts span several chunks of prefill and states are kept on a grid of 64 tokens, so that requests resume from them.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import families, reference
from tests.support.answers import assert_answer
from tests.support.server import CONTROL, serve
from tests.support.tiny_models import prompt_ids

CHUNK = 256  # tokens of one prefill
LENGTHS = (40, 300, 900)
NEW_TOKENS = 8
GRID = 64  # `extra_buffer` keeps a prefill's state at a multiple of it, the last one in the chunk
DECODE_GRID = 256  # and a decode's at a multiple of this
STRATEGIES = {
    "extra_buffer": (),  # SGLang's choice, with overlapped scheduling
    "no_buffer": ("--mamba-radix-cache-strategy", "no_buffer", "--disable-overlap-schedule"),
}
HYBRIDS = (*families.delta.FAMILIES, *families.scan.FAMILIES)
CASES = [pytest.param((name, strategy), id=f"{name}-{strategy}") for name in HYBRIDS for strategy in STRATEGIES]
pytestmark = pytest.mark.slow  # test_families runs the same operators


@pytest.fixture(scope="module", params=CASES)
def case(request, model_of, hugging_face, tmp_path_factory):
    """A server, what its cache can resume from, its model in transformers and the family's tolerance."""
    name, strategy = request.param
    family = families.FAMILIES[name]
    model = model_of(name)
    options = ("--chunked-prefill-size", str(CHUNK), *STRATEGIES[strategy], *family.options)
    with serve(tmp_path_factory.mktemp(name), model, *options, env={**CONTROL, **family.env}) as server:
        yield server, strategy, hugging_face(model), family.tolerance


def ask(case, ids: list[int], new_tokens: int = NEW_TOKENS) -> dict:
    return case[0].generate(ids, params={"max_new_tokens": new_tokens}, return_logprob=True)


def check(case, ids: list[int], reply: dict) -> int:
    """The reply equals transformers, to the token; returns how many tokens of the prompt came from the cache."""
    _, _, model, tolerance = case
    wanted = reference.greedy(model, ids, range(len(ids)), len(ids), len(reply["output_ids"]))
    assert_answer(reply, *wanted, tolerance)
    return reply["meta_info"]["cached_tokens"]


@pytest.mark.parametrize("length", LENGTHS)
def test_fresh_cached_and_extended(case, length):
    server, strategy, *_ = case
    server.flush()
    ids = prompt_ids(length, seed=length)
    longer = ids + prompt_ids(77, seed=1)
    assert check(case, ids, ask(case, ids)) == 0
    again = check(case, ids, ask(case, ids))
    extended = check(case, longer, ask(case, longer))
    if strategy == "extra_buffer":
        assert again == extended == length // GRID * GRID
    else:  # states are kept at ends of chunks and prompts; a prompt's last token is never taken from the cache
        assert (again, extended) == ((length - 1) // CHUNK * CHUNK, length)


def test_next_turn_resumes_from_a_state_of_the_answer(case):
    case[0].flush()
    ids = prompt_ids(130, seed=2)
    first = ask(case, ids, new_tokens=DECODE_GRID - len(ids) + 10)
    check(case, ids, first)
    turn = ids + first["output_ids"] + prompt_ids(50, seed=3)
    assert check(case, turn, ask(case, turn)) >= DECODE_GRID


def test_requests_that_run_together(case):
    """Prefills of several sequences, and decodes of several slots, each on its own grid."""
    case[0].flush()
    prompts = [prompt_ids(length, seed=length) for length in (50, 700, 333, 64, 65)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        replies = list(pool.map(lambda ids: ask(case, ids), prompts))
    for ids, reply in zip(prompts, replies, strict=True):
        check(case, ids, reply)
