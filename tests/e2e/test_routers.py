"""Two servers behind SGLang's model gateway, smg: fields and replies pass whole, a document finds the draft that read it."""

import json
import subprocess
import sys
import time

import pytest
import requests

from benchmarks import launch
from tests.support.server import Server, body_of, serve, sparse_options
from tests.support.tiny_models import prompt_ids

pytestmark = pytest.mark.slow
pytest.importorskip("smg", reason="needs the gateway: pip install smg==1.13.0")

SPARSE = {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_positions": True}


@pytest.fixture(scope="module")
def servers(pair_of, tmp_path_factory):
    target, draft = pair_of("llama")
    folder = tmp_path_factory.mktemp("behind")
    with serve(folder, target, *sparse_options(draft)) as one, serve(folder, target, *sparse_options(draft)) as other:
        one.model = other.model = str(target.resolve())
        yield one, other


@pytest.fixture(scope="module")
def router(servers, tmp_path_factory):
    log, ports = tmp_path_factory.mktemp("router") / "router.log", [str(launch.free_port()) for _ in range(2)]
    words = ["--policy", "cache_aware", "--host", "127.0.0.1", "--port", ports[0], "--prometheus-port", ports[1]]
    command = [sys.executable, "-m", "smg", "launch", "--worker-urls", *(server.url for server in servers), *words]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        router = Server(f"http://127.0.0.1:{ports[0]}", log)
        router.model = servers[0].model
        _wait_for_workers(router, process)
        yield router
    finally:
        launch.end(process)


def _wait_for_workers(router, process, count=2):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            workers = requests.get(router.url + "/workers", timeout=5).json()["workers"]
            if sum(worker["is_healthy"] for worker in workers) == count:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise AssertionError(router.log.read_text()[-3000:])


def _bodies(router, text, custom):
    message = {"model": router.model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
    return {
        "/generate": {"text": text, "sampling_params": body_of([], custom=custom)["sampling_params"]},
        "/v1/completions": {"model": router.model, "prompt": text, "max_tokens": 8, "temperature": 0, "custom_params": custom},
        "/v1/chat/completions": {**message, "custom_params": custom},
        "/v1/messages": {**message, "custom_params": custom},
    }


def _objects(body):
    """Reply objects anywhere in a JSON body."""
    if isinstance(body, list):
        return [found for one in body for found in _objects(one)]
    if not isinstance(body, dict):
        return []
    mine = [body["spec_prefill"]] if isinstance(body.get("spec_prefill"), dict) else []
    return mine + [found for name, one in body.items() if name != "spec_prefill" for found in _objects(one)]


def _events(response):
    return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith(b"data: {")]


PATHS = ["/generate", "/v1/completions", "/v1/chat/completions", "/v1/messages"]


@pytest.fixture(scope="module")
def text(servers):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(servers[0].model).decode(prompt_ids(700, seed=3))


@pytest.mark.parametrize("path", PATHS)
def test_fields_and_replies_pass_whole(servers, router, text, path):
    for server in servers:
        server.flush()
    body = _bodies(router, text, SPARSE)[path]
    direct = servers[0].post(path, body)
    assert direct.status_code == 200, direct.text
    routed = router.post(path, body)
    assert routed.status_code == 200, routed.text
    (wanted,), (said,) = _objects(direct.json()), _objects(routed.json())
    assert said["applied"]
    assert said["positions"] == wanted["positions"]
    with router.post(path, {**body, "stream": True}, stream=True) as response:
        assert response.status_code == 200
        assert _objects(_events(response))[-1]["positions"] == wanted["positions"]


@pytest.mark.parametrize("path", PATHS)
def test_refusals_pass_too(router, text, path):
    response = router.post(path, _bodies(router, text, {"spec_prefill_keep_ratio": 2})[path])
    assert response.status_code == 400
    assert "spec_prefill_keep_ratio" in response.text


def test_responses_have_the_servers_defaults(router, text):
    """There the router itself refuses what it does not know, rather than dropping it."""
    body = {"model": router.model, "input": text, "max_output_tokens": 8, "temperature": 0}
    assert _objects(router.post("/v1/responses", body).json())[0]["applied"]
    refused = router.post("/v1/responses", {**body, "custom_params": SPARSE})
    assert (refused.status_code, "custom_params" in refused.text) == (400, True)


def test_a_document_goes_where_it_was_read(servers, router):
    """The router knows who has a text; so the draft's prefix cache serves the next question on it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(router.model)
    for server in servers:
        server.flush()
    documents = [tokenizer.decode(prompt_ids(600, seed=40 + at)) for at in range(6)]

    def ask(document, question):
        asked = {"text": document + question, "sampling_params": body_of([], custom=SPARSE)["sampling_params"]}
        return router.post("/generate", asked).json()["meta_info"]["spec_prefill"]

    first = [ask(document, " what is it") for document in documents]
    again = [ask(document, " and whose was it then") for document in documents]
    assert all(info["draft_cached_tokens"] < 50 for info in first)
    assert all(info["draft_cached_tokens"] > 550 for info in again)
