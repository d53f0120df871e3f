"""The radix cache is shared safely: every answer equals its answer without a cache, and hits are where they must be."""

import numpy as np
import pytest

from specprefill_sgl.request.skipcode import encode
from tests.support import reference
from tests.support.server import serve, sparse_options
from tests.support.tiny_models import prompt_ids

PREFIX = 128  # tokens kept at the start: what dense and sparse requests can share
SEQUENCE = (0.3, 0.1, 0.3, 0.5, 1, 0.1, None, 0.2, 0.3)  # after the dense one, what was not asked before is cached whole


def custom_of(keep_ratio):
    if keep_ratio is None:
        return {"spec_prefill": False}
    return {
        "spec_prefill_keep_ratio": keep_ratio,
        "spec_prefill_protect": [0, PREFIX],
        "spec_prefill_return_positions": True,
    }


@pytest.fixture(scope="module")
def document():
    return prompt_ids(1500, seed=77)


@pytest.fixture(scope="module")
def model(pair_of, hugging_face):
    return hugging_face(pair_of("llama")[0])


@pytest.fixture(scope="module")
def server(pair_of, tmp_path_factory):
    target, draft = pair_of("llama")
    with serve(tmp_path_factory.mktemp("cached"), target, *sparse_options(draft)) as server:
        yield server


def _common_prefix(one, other):
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def test_every_answer_is_that_of_its_kept_tokens_and_hits_what_it_may(server, model, document):
    server.flush()
    seen, reasons = [], []
    for keep in SEQUENCE:
        reply = server.generate(document, custom=custom_of(keep))
        info = reply["meta_info"]["spec_prefill"]
        positions = info.get("positions", list(range(len(document))))
        tokens, _ = reference.greedy(model, document, positions, len(document), len(reply["output_ids"]))
        assert reply["output_ids"] == tokens, keep
        coded = list(encode(document, np.array(positions)))
        hit = max((_common_prefix(coded, other) for other in seen), default=0)
        assert reply["meta_info"]["cached_tokens"] == min(hit, len(coded) - 1), keep
        seen.append(coded)
        reasons.append(info["reason"])
    assert reasons == [None] * 6 + ["disabled_by_request", "prefix_cached", None]


def test_undropped_prefix_is_shared_both_ways(server, document):
    other = document[:PREFIX] + prompt_ids(900, seed=5)
    for first, second in ((None, 0.1), (0.1, None)):
        server.flush()
        server.generate(other, custom=custom_of(first))
        reply = server.generate(document, custom=custom_of(second))
        assert PREFIX <= reply["meta_info"]["cached_tokens"] < len(document) - 1


def test_repeat_hits_all_but_the_last_token(server, document):
    server.flush()
    server.generate(document, custom=custom_of(0.1))
    reply = server.generate(document, custom=custom_of(0.1))
    assert reply["meta_info"]["cached_tokens"] == reply["meta_info"]["spec_prefill"]["kept_tokens"] - 1


def test_system_prompt_is_never_dropped_by_a_prefix_hit(server, document):
    """A shipped bug elsewhere: a prefix hit silently dropped the system prompt."""
    server.flush()
    other = document[:PREFIX] + prompt_ids(900, seed=5)
    fresh = server.generate(other, custom=custom_of(0.1))
    server.flush()
    server.generate(document, custom=custom_of(None))
    reused = server.generate(other, custom=custom_of(0.1))
    assert reused["meta_info"]["cached_tokens"] >= PREFIX
    assert reused["meta_info"]["spec_prefill"]["positions"] == fresh["meta_info"]["spec_prefill"]["positions"]
    assert reused["output_ids"] == fresh["output_ids"]
