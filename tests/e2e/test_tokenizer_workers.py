"""`--tokenizer-worker-num`: every process that takes requests checks them, answers as a single one would, and aborts any."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.faults import plugin_on_path
from tests.support.mixture import assert_same_mixture
from tests.support.server import body_of, serve, sparse_options
from tests.support.streams import until
from tests.support.tiny_models import prompt_ids
from tests.support.workers import PATIENT, workers_of

TWO = ["--tokenizer-worker-num", "2"]
SPARSE = {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_positions": True}
BAD = [
    ("spec_prefill_keep_ratio", 2),
    ("spec_prefill_method", "early-layers"),  # a method, but none that this server loads
    ("spec_prefill_protect", [9, 3]),
    ("spec_prefill_unknown", 1),
]


@pytest.fixture(scope="module")
def server(pair_of, tmp_path_factory):
    target, draft = pair_of("llama")
    with serve(tmp_path_factory.mktemp("workers"), target, *sparse_options(draft), *TWO, env=PATIENT) as server:
        yield server


@pytest.fixture(scope="module")
def workers(server):
    return workers_of(server, 2)


def _bodies(ids, custom, **fields):
    """The same request on three routes."""
    chat = {"messages": [{"role": "user", "content": " a" * 300}]}
    openai = {"model": "m", "temperature": 0, "max_tokens": 8, "ignore_eos": True, "custom_params": custom}
    return {
        "/generate": {**body_of(ids, custom=custom), **fields},
        "/v1/completions": {**openai, "prompt": ids, **fields},
        "/v1/chat/completions": {**openai, **chat, **fields},
    }


def _reply_objects(path, reply):
    """Of a reply, or of the events of a stream that have one."""
    events = reply.events() or [reply.json()]
    holders = [event["meta_info"] if path == "/generate" else event.get("sglext") or {} for event in events]
    return [holder["spec_prefill"] for holder in holders if "spec_prefill" in holder]


def test_answers_are_those_of_a_server_with_one_process(server, mixture_of):
    assert_same_mixture(server, mixture_of("llama"))


@pytest.mark.parametrize("stream", [False, True])
def test_each_refuses_bad_fields(workers, stream):
    for worker in workers:
        for field, value in BAD:
            for path, body in _bodies([5] * 40, {field: value}, stream=stream).items():
                reply = worker.post(path, body)
                assert (reply.status, field in reply.text) == (400, True), (worker.pid, path, field, reply)
    misplaced = {**body_of([5] * 40), "custom_params": {"spec_prefill": False}}
    assert [worker.post("/generate", misplaced).status for worker in workers] == [400, 400]


def test_each_says_what_was_kept(server, workers):
    ids = prompt_ids(600, seed=4)
    for path, body in _bodies(ids, SPARSE).items():
        found = []
        for worker in workers:
            server.flush()
            whole, streamed = worker.post(path, body), worker.post(path, {**body, "stream": True})
            assert (whole.status, streamed.status) == (200, 200)
            (said,) = _reply_objects(path, whole)
            assert said["applied"]
            assert _reply_objects(path, streamed)[-1]["positions"] == said["positions"]
            found.append(said["positions"])
        assert found[0] == found[1]
        assert len(found[0]) < said["prompt_tokens"]


def test_what_one_streams_the_other_aborts(server, workers):
    for worker, other in (workers, workers[::-1]):
        rid = uuid.uuid4().hex
        body = body_of(prompt_ids(500, seed=6), custom=SPARSE, params={"max_new_tokens": 4000}, rid=rid, stream=True)
        with ThreadPoolExecutor(1) as pool:
            streamed = pool.submit(worker.post, "/generate", body)
            until(lambda: server.load()["num_running_reqs"] == 1)
            assert other.post("/abort_request", {"rid": rid}).status == 200
            last = streamed.result(timeout=60).events()[-1]["meta_info"]
        assert last["finish_reason"]["type"] == "abort"
        assert last["completion_tokens"] < 4000
    server.flush()
    assert server.load()["num_used_tokens"] == 0


@pytest.mark.slow
def test_without_the_app_that_loads_plugins_nothing_is_checked(pair_of, tmp_path):
    """What the name that the launcher gives to SGLang is for."""
    source = "def register():\n    from specprefill_sgl.hooks import launch\n    launch._name_app_of_workers = lambda _: None\n"
    env = PATIENT | plugin_on_path(tmp_path / "plugin", "undoing", source)
    target, draft = pair_of("llama")
    with serve(tmp_path, target, *sparse_options(draft), *TWO, env=env) as server:
        for worker in workers_of(server, 2):
            assert worker.post("/v1/completions", {"model": "m", "prompt": "a", "spec_prefill": False}).status == 200
            reply = worker.post("/v1/chat/completions", _bodies([5] * 40, SPARSE)["/v1/chat/completions"])
            assert _reply_objects("/v1/chat/completions", reply) == []


@pytest.mark.slow
def test_without_the_flag_each_refuses_fields(pair_of, tmp_path):
    with serve(tmp_path, pair_of("llama")[0], *TWO, env=PATIENT) as server:
        for worker in workers_of(server, 2):
            for path, body in _bodies([5] * 40, SPARSE).items():
                reply = worker.post(path, body)
                assert (reply.status, "--spec-prefill" in reply.text) == (400, True), (path, reply)


@pytest.mark.slow
def test_http2_workers_too(pair_of, tmp_path):
    """SGLang's other HTTP server reads the same name; its package is not among SGLang's own dependencies."""
    pytest.importorskip("granian", reason="needs the package granian: pip install sglang[http2]")
    target, draft = pair_of("llama")
    with serve(tmp_path, target, *sparse_options(draft), *TWO, "--enable-http2", env=PATIENT) as server:
        for worker in workers_of(server, 2):
            for path, body in _bodies(prompt_ids(600, seed=4), SPARSE).items():
                assert worker.post(path, {**body, "spec_prefill": False}).status == 400
                assert _reply_objects(path, worker.post(path, body))[0]["applied"]
