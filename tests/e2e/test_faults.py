"""Whatever fails, every request gets a right sparse answer, a dense one that says why, or a clear 4xx; the server lives on.

All hashes of earlier prompts collide on this server, its draft pool holds one long prompt, and its draft fails at random chunks
when a test says so. (Draft failures on an otherwise quiet server: test_aborts.py.)
"""

import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from tests.support import reference
from tests.support.answers import Judge
from tests.support.faults import Faults
from tests.support.server import body_of, serve, sparse_options
from tests.support.tiny_models import prompt_ids

POOL, CHUNK = 2100, 256
KEEP = {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_positions": True}


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def server(pair_of, tmp_path_factory, faults):
    target, draft = pair_of("llama")
    faults.switch("collide")
    options = [*sparse_options(draft, draft_max_tokens=POOL), "--chunked-prefill-size", str(CHUNK)]
    with serve(tmp_path_factory.mktemp("faulty"), target, *options, env=faults.env) as running:
        yield running


@pytest.fixture(scope="module")
def judge(pair_of, hugging_face):
    return Judge(*map(hugging_face, pair_of("llama")))


@pytest.fixture(autouse=True)
def nothing_leaks(server):
    server.flush()
    before = server.draft_pools()
    yield
    server.flush()
    assert server.load()["num_used_tokens"] == 0
    assert server.draft_pools() == before


def _all_at_once(server, prompts):
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda ids: server.generate(ids, custom=KEEP), prompts))


def test_drafts_fail_at_random_chunks_under_load(server, faults, judge, pair_of, hugging_face):
    prompts = [prompt_ids(random.Random(seed).randint(100, 1900), seed=seed) for seed in range(24)]
    faults.switch("some_steps")
    try:
        replies = _all_at_once(server, prompts)
    finally:
        faults.switch("some_steps", on=False)
    failed = [reply["meta_info"]["spec_prefill"]["reason"] == "draft_error" for reply in replies]
    assert any(failed)
    assert not all(failed)
    model = hugging_face(pair_of("llama")[0])
    for ids, reply, bad in zip(prompts, replies, failed, strict=True):
        if bad:
            everything = list(range(len(ids)))
            assert reply["meta_info"]["spec_prefill"]["positions"] == everything
            assert reply["output_ids"] == reference.greedy(model, ids, everything, len(ids), 8)[0]
        else:
            assert judge.wrong([reply], [(ids, KEEP)]) == []


def test_a_failed_draft_costs_no_one_else_their_turns(server, faults):
    ids = prompt_ids(900, seed=70)
    first = server.generate(ids, custom=KEEP)
    faults.switch("draft")
    try:
        failed = server.generate(prompt_ids(800, seed=71), custom=KEEP)
    finally:
        faults.switch("draft", on=False)
    again = server.generate(ids, custom=KEEP)["meta_info"]["spec_prefill"]
    assert failed["meta_info"]["spec_prefill"]["reason"] == "draft_error"
    assert again["draft_ms"] == 0
    assert again["positions"] == first["meta_info"]["spec_prefill"]["positions"]


def test_prompts_that_fill_the_draft_pool_wait_for_each_other(server, judge):
    prompts = [prompt_ids(1500 + 60 * number, seed=40 + number) for number in range(8)]
    assert judge.wrong(_all_at_once(server, prompts), [(ids, KEEP) for ids in prompts]) == []


def test_a_prompt_longer_than_the_draft_pool_is_dense(server):
    reply = server.generate(prompt_ids(POOL + 100, seed=50), custom=KEEP)
    assert reply["meta_info"]["spec_prefill"]["reason"] == "exceeds_draft_pool"


def test_prompts_whose_hashes_collide_are_told_apart(server, judge):
    """Same length, same hashes: neither the same prompt nor the next turn of another one."""
    prompts = [prompt_ids(640, seed=60 + number) for number in range(4)]
    for _ in range(2):
        replies = [server.generate(ids, custom=KEEP) for ids in prompts]
        assert judge.wrong(replies, [(ids, KEEP) for ids in prompts]) == []
    answers = [reply["output_ids"] for reply in replies]
    crossed = [ids + answer + prompt_ids(64, seed=70) for ids, answer in zip(prompts, answers[1:] + answers[:1], strict=True)]
    replies = [server.generate(ids, custom=KEEP) for ids in crossed]
    assert judge.wrong(replies, [(ids, KEEP) for ids in crossed]) == []


def test_a_client_that_never_reads(server, judge):
    where = urlsplit(server.url)
    long = body_of(prompt_ids(900, seed=80), custom=KEEP, params={"max_new_tokens": 6000}, stream=True)
    body = json.dumps(long).encode()
    lines = [
        "POST /generate HTTP/1.1",
        f"Host: {where.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    head = "".join(line + "\r\n" for line in [*lines, ""])
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect((where.hostname, where.port))
        deaf.sendall(head.encode() + body)
        deadline = time.monotonic() + 30
        while server.load()["num_running_reqs"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        prompts = [prompt_ids(700, seed=81 + number) for number in range(4)]
        assert judge.wrong(_all_at_once(server, prompts), [(ids, KEEP) for ids in prompts]) == []
    deadline = time.monotonic() + 30
    while server.load()["num_running_reqs"]:
        assert time.monotonic() < deadline, "a request whose client left goes on"
        time.sleep(0.2)
