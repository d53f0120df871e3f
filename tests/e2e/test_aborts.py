"""Aborts and disconnects at every point: nothing leaks, answers stay. SGLang's own leak check runs when idle."""

import threading
import time

import pytest
import requests

from tests.support.faults import Faults
from tests.support.server import body_of, serve, sparse_options
from tests.support.tiny_models import prompt_ids

SPARSE = {"spec_prefill_keep_ratio": 0.2}


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def server(pair_of, tmp_path_factory, faults):
    target, draft = pair_of("llama")
    with serve(tmp_path_factory.mktemp("aborts"), target, *sparse_options(draft), env=faults.env) as server:
        yield server


@pytest.fixture
def slow_draft(faults):
    """Seven lookahead steps of 0.3 s each, so that something can happen meanwhile."""
    faults.switch("slow_draft")
    yield
    faults.switch("slow_draft", on=False)


@pytest.fixture(autouse=True)
def nothing_leaks(server):
    server.flush()
    before = server.draft_pools()
    probe = prompt_ids(500, seed=9)
    wanted = server.generate(probe, custom=SPARSE)["output_ids"]
    yield
    server.flush()
    assert server.load()["num_used_tokens"] == 0
    assert server.draft_pools() == before
    assert before["draft_available_tokens"] == before["draft_max_tokens"]
    assert server.generate(probe, custom=SPARSE)["output_ids"] == wanted
    time.sleep(1.5)  # an idle scheduler checks its pools and dies on a leak, its server with it
    assert requests.get(server.url + "/health", timeout=30).status_code == 200


def _send(server, rid, length, **params):
    replies = []
    body = body_of(prompt_ids(length, seed=length), custom=SPARSE, params=params, rid=rid)
    thread = threading.Thread(target=lambda: replies.append(server.post("/generate", body)))
    thread.start()
    return thread, replies


def _abort(server, rid):
    assert server.post("/abort_request", {"rid": rid}).status_code == 200


def _finished_as_abort(thread, replies):
    thread.join(timeout=60)
    assert not thread.is_alive(), "the request never came back"
    reply = replies[0].json()
    return replies[0].status_code != 200 or reply["meta_info"]["finish_reason"]["type"] == "abort"


def _becomes_idle(server):
    """Well before the request's 4,000 tokens could have been decoded."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        load = server.load()
        if load["num_running_reqs"] == load["num_waiting_reqs"] == 0:
            return
        time.sleep(0.2)
    raise AssertionError(f"the request of a client that left goes on: {load}")


def test_abort_in_the_waiting_queue(server, slow_draft):
    first, first_replies = _send(server, "first", 600)
    time.sleep(0.7)  # the first is being drafted; the second waits
    second, second_replies = _send(server, "second", 700)
    time.sleep(0.3)
    _abort(server, "second")
    assert _finished_as_abort(second, second_replies)
    first.join(timeout=60)
    assert first_replies[0].json()["meta_info"]["spec_prefill"]["applied"]


def test_abort_while_drafting(server, slow_draft):
    thread, replies = _send(server, "drafted", 900, max_new_tokens=2000)
    time.sleep(1.0)
    _abort(server, "drafted")
    assert _finished_as_abort(thread, replies)


def test_abort_while_decoding(server):
    thread, replies = _send(server, "decoding", 900, max_new_tokens=4000)
    time.sleep(1.5)
    _abort(server, "decoding")
    assert _finished_as_abort(thread, replies)
    info = replies[0].json()["meta_info"]
    assert info["spec_prefill"]["applied"]
    assert 0 < info["completion_tokens"] < 4000


def test_client_leaves_a_stream(server):
    body = body_of(prompt_ids(800, seed=4), custom=SPARSE, params={"max_new_tokens": 4000}, stream=True)
    with server.post("/generate", body, stream=True) as response:
        next(response.iter_lines())
    _becomes_idle(server)


def test_client_leaves_while_drafting(server, slow_draft):
    body = body_of(prompt_ids(800, seed=6), custom=SPARSE, params={"max_new_tokens": 4000})
    with pytest.raises(requests.Timeout):
        requests.post(server.url + "/generate", json=body, timeout=0.8)
    _becomes_idle(server)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("draft", "injected draft fault"),
        ("score", "injected scoring fault"),
        ("join", "injected joining fault"),
        ("nan", "scores are not finite"),
    ],
)
def test_a_failing_draft_is_answered_dense_and_says_so(server, faults, fault, error):
    ids = prompt_ids(700, seed=8)
    wanted = server.generate(ids, custom={"spec_prefill": False})
    server.flush()  # or the prompt would be in the radix cache, and not drafted
    faults.switch(fault)
    try:
        size = server.log.stat().st_size
        reply = server.generate(ids, custom=SPARSE)
    finally:
        faults.switch(fault, on=False)
    info = reply["meta_info"]["spec_prefill"]
    assert (info["applied"], info["reason"], info["kept_tokens"]) == (False, "draft_error", len(ids))
    assert reply["output_ids"] == wanted["output_ids"]
    logged = server.log.read_text()[size:]
    assert logged.count("Traceback (most recent call last)") == 1
    assert error in logged
    state = server.draft_pools()
    assert state["draft_available_tokens"] == state["draft_max_tokens"]
    server.flush()
    assert server.generate(ids, custom=SPARSE)["meta_info"]["spec_prefill"]["applied"]
