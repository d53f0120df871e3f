"""The method lazy where something goes wrong: retraction, failing scores, too little memory, KV that others could find."""

import pytest

from tests.support import lazy_reference, tiny_models
from tests.support.answers import all_at_once
from tests.support.faults import serve_with_faults
from tests.support.server import sparse_options
from tests.support.tiny_models import prompt_ids

pytestmark = pytest.mark.slow
KEEP = (0.5, 0.3)
BYTES = 64 * 4 * 1000  # the hidden states of so many tokens


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return tiny_models.save_deep("llama", tmp_path_factory.mktemp("lazy") / "target", layers=4)


@pytest.fixture(scope="module", params=[(False, 1), (True, 1), (False, 2)], ids=["kept", "retracting", "two ranks"])
def case(request, target, tmp_path_factory):
    retracting, ranks = request.param
    settings = {"method": "lazy", "layers": "2,3", "keep_by_layer": "0.5,0.3", "selection": "best", "aux_cache_bytes": BYTES}
    options = [*sparse_options(None, **settings), "--tp", str(ranks)]
    with serve_with_faults(tmp_path_factory.mktemp("lazy"), target, *options, retracting=retracting) as served:
        yield *served, retracting, ranks


@pytest.fixture(scope="module")
def wanted(target, hugging_face):
    lazy = lazy_reference.Lazy(hugging_face(target), (2, 3), lazy_reference.BEST, KEEP)
    return lambda ids, new, **how: lazy.answer(ids, new, **how)


CUSTOM = {"spec_prefill_return_positions": True}


def test_a_retracted_request_goes_on_with_what_it_kept(case, wanted):
    server = case[0]
    requests = [(prompt_ids(150 + 130 * at, seed=at), CUSTOM) for at in range(6)]
    for reply, (ids, _) in zip(all_at_once(server, requests, max_new_tokens=20), requests, strict=True):
        tokens, kept = wanted(ids, 20)
        assert (reply["meta_info"]["spec_prefill"]["positions"], reply["output_ids"]) == (kept[-1], tokens)
    assert ("retract" in server.log.read_text().lower()) or not case[2]
    _nothing_is_held(server)


def test_where_scores_fail_nothing_is_dropped(case, hugging_face, target):
    server, faults, _, ranks = case
    ids = prompt_ids(600, seed=600)
    dense = server.generate(ids, custom={"spec_prefill": False})["output_ids"]
    server.flush()
    fault = "lazy_score" if ranks == 1 else "lazy_score_on_rank_1"
    faults.switch(fault)
    reply = server.generate(ids, custom=CUSTOM)
    faults.switch(fault, on=False)
    info = reply["meta_info"]["spec_prefill"]
    assert (info["applied"], info["reason"], info["kept_tokens"]) == (False, "draft_error", 600)
    assert reply["output_ids"] == dense


def test_a_prompt_that_cannot_be_parked_is_dense(case):
    server = case[0]
    info = server.generate(prompt_ids(1001, seed=3))["meta_info"]["spec_prefill"]
    assert (info["applied"], info["reason"]) == (False, "exceeds_aux_cache")
    assert server.generate(prompt_ids(1000, seed=3))["meta_info"]["spec_prefill"]["applied"]


def test_who_lost_what_it_parked_answers_without(case, wanted):
    """Three that ask at once, whose parked tokens do not fit together."""
    server = case[0]
    custom = {**CUSTOM, "spec_prefill_revive_every": 3}
    requests = [(prompt_ids(900, seed=900 + at), custom) for at in range(3)]
    alone = [server.generate(ids, custom=custom, params={"max_new_tokens": 16}) for ids, _ in requests]
    replies = all_at_once(server, requests, max_new_tokens=16)
    if not case[2]:  # what is recomputed after a retraction sees what returned before it
        for reply, (ids, _) in zip(replies, requests, strict=True):
            asked = set(reply["meta_info"]["spec_prefill"]["asked_after"])
            assert reply["output_ids"] == wanted(ids, 16, returns=(asked, 8))[0]
        assert _times_asked(replies) < _times_asked(alone)  # or nobody lost anything
    _nothing_is_held(server)


def test_in_the_radix_cache_it_would_be_wrong_for_others(case):
    """Of the KV that is barred from it."""
    server, faults, *_ = case
    ids = prompt_ids(640, seed=640)
    dense = server.generate(ids, custom={"spec_prefill": False})["output_ids"]
    for in_tree in (False, True):
        server.flush()
        server.generate(prompt_ids(3000, seed=1), custom={"spec_prefill": False})  # or the right KV lies where none is written
        server.flush()
        faults.switch("lazy_in_tree", on=in_tree)
        server.generate(ids)
        reply = server.generate(ids, custom={"spec_prefill": False})
        faults.switch("lazy_in_tree", on=False)
        assert (reply["output_ids"] == dense, reply["meta_info"]["cached_tokens"] > 1) == (not in_tree, in_tree)
    server.flush()


def _times_asked(replies):
    return sum(len(reply["meta_info"]["spec_prefill"]["asked_after"]) for reply in replies)


def _nothing_is_held(server):
    server.flush()
    assert server.load()["num_used_tokens"] == 0
    assert server.state()["spec_prefill"]["lazy_aux_cache_bytes"] == 0
