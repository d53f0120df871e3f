"""The draft's own prefix cache: hits are what they must be, and change nothing but the work."""

import pytest

from tests.support.faults import Faults
from tests.support.server import serve, sparse_options
from tests.support.tiny_models import prompt_ids

SPARSE = {"spec_prefill_keep_ratio": 0.3, "spec_prefill_return_positions": True}
POOL = 6000


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module", params=[1, 16], ids=["page 1", "page 16"])
def server(request, pair_of, faults, tmp_path_factory):
    target, draft = pair_of("llama")
    options = [*sparse_options(draft, draft_max_tokens=POOL), "--page-size", str(request.param)]
    with serve(tmp_path_factory.mktemp("server"), target, *options, env=faults.env) as running:
        running.page_size = request.param
        yield running


@pytest.fixture(autouse=True)
def all_given_back(server):
    server.flush()
    yield
    state = server.state()["spec_prefill"]
    assert state["draft_available_tokens"] == state["draft_max_tokens"]
    assert state["draft_available_requests"] == 16


def _ask(server, ids, keep_ratio=0.3):
    reply = server.generate(ids, custom={"spec_prefill_keep_ratio": keep_ratio, "spec_prefill_return_positions": True})
    info = reply["meta_info"]["spec_prefill"]
    assert info["applied"]
    return info["draft_cached_tokens"], info["positions"], reply["output_ids"]


def _pages(server, tokens):
    return tokens // server.page_size * server.page_size


def test_a_prompt_asked_again_otherwise_costs_the_draft_its_last_token(server):
    """With the very same settings it would not be drafted at all (test_multi_turn.py)."""
    ids = prompt_ids(1200, seed=1)
    assert _ask(server, ids)[0] == 0
    assert _ask(server, ids, 0.4)[0] == _pages(server, len(ids) - 1)


def test_another_question_on_the_same_document_is_scored_afresh(server):
    document = prompt_ids(1100, seed=2)
    prompts = [document + prompt_ids(60, seed=seed) for seed in (3, 4)]
    fresh = []
    for ids in prompts:
        server.flush()
        fresh.append(_ask(server, ids))
    server.flush()
    for number, ids in enumerate(prompts):
        cached, *rest = _ask(server, ids)
        assert cached == (_pages(server, len(document)) if number else 0)
        assert tuple(rest) == fresh[number][1:]


def test_prompts_that_evict_each_other_stay_right(server):
    prompts = [prompt_ids(1900, seed=seed) for seed in range(20, 26)]
    wanted = []
    for ids in prompts:
        server.flush()
        wanted.append(_ask(server, ids)[1:])
    server.flush()
    for _ in range(2):
        for ids, one in zip(prompts, wanted, strict=True):
            assert _ask(server, ids)[1:] == one
    assert 0 < server.state()["spec_prefill"]["draft_cached_tokens"] <= POOL


def test_a_failed_draft_leaves_nothing_half_cached(server, faults):
    ids = prompt_ids(1300, seed=7)
    wanted = _ask(server, ids)
    server.flush()
    faults.switch("draft")
    try:
        assert server.generate(ids, custom=SPARSE)["meta_info"]["spec_prefill"]["reason"] == "draft_error"
    finally:
        faults.switch("draft", on=False)
    server.flush()
    assert _ask(server, ids) == wanted


def test_flushing_the_radix_cache_flushes_the_drafts(server):
    ids = prompt_ids(1000, seed=8)
    _ask(server, ids)
    assert server.state()["spec_prefill"]["draft_cached_tokens"] > 0
    server.flush()
    assert server.state()["spec_prefill"]["draft_cached_tokens"] == 0
    assert _ask(server, ids)[0] == 0
