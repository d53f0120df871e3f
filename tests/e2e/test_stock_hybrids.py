"""Stock SGLang on the CPU platform serves gated delta net hybrids exactly: no draft, nothing of ours but torch operators.

Prompts span several chunks of prefill and states are kept on a grid of 64 tokens, so that requests resume from them.
"""

import pytest

from tests.support import families, reference
from tests.support.server import CONTROL, serve
from tests.support.tiny_models import prompt_ids

CHUNK = 256  # tokens of one prefill
LENGTHS = (40, 300, 900)
NEW_TOKENS = 8
LONG_ANSWER = 300  # decodes pass the 256 tokens at which `extra_buffer` keeps another state
STRATEGIES = {
    "extra_buffer": (),  # SGLang's choice, with overlapped scheduling
    "no_buffer": ("--mamba-radix-cache-strategy", "no_buffer", "--disable-overlap-schedule"),
}
HYBRIDS = ("qwen3_5", "qwen3_5_moe", "qwen3_5_vl", "qwen3_next")
REPRESENTATIVE = ("qwen3_5", "extra_buffer")


def _cases():
    for name in HYBRIDS:
        for strategy in STRATEGIES:
            marks = () if (name, strategy) == REPRESENTATIVE else pytest.mark.slow
            yield pytest.param((name, strategy), id=f"{name}-{strategy}", marks=marks)


@pytest.fixture(scope="module", params=_cases())
def case(request, tmp_path_factory, hugging_face):
    """A server, what its cache can resume from, its model in transformers and the family's tolerance."""
    name, strategy = request.param
    family = families.FAMILIES[name]
    folder = tmp_path_factory.mktemp(name)
    model = families.save(name, folder / "model")
    options = ("--chunked-prefill-size", str(CHUNK), *STRATEGIES[strategy], *family.options)
    with serve(folder, model, *options, env={**CONTROL, **family.env}) as server:
        yield server, strategy, hugging_face(model), family.tolerance


def check(case, ids: list[int], new_tokens: int = NEW_TOKENS) -> tuple[int, list[int]]:
    """One request equals transformers, to the token; how many tokens came from the cache, and the answer."""
    server, _, model, tolerance = case
    reply = server.generate(ids, params={"max_new_tokens": new_tokens}, return_logprob=True)
    tokens, logprobs = reference.greedy(model, ids, range(len(ids)), len(ids), new_tokens)
    assert reply["output_ids"] == tokens
    assert [p[0] for p in reply["meta_info"]["output_token_logprobs"]] == pytest.approx(logprobs, abs=tolerance)
    return reply["meta_info"]["cached_tokens"], tokens


@pytest.mark.parametrize("length", LENGTHS)
def test_fresh_cached_and_extended(case, length):
    server, strategy, *_ = case
    server.flush()
    ids = prompt_ids(length, seed=length)
    assert check(case, ids)[0] == 0
    again, _ = check(case, ids)
    extended, _ = check(case, ids + prompt_ids(77, seed=1))
    kept = length // 64 * 64 if strategy == "extra_buffer" else 0  # a state can only be resumed from where one was kept
    assert again >= min(kept, (length - 1) // CHUNK * CHUNK)
    assert extended >= kept
