"""Bad fields are HTTP 400 with the field's name, on every route, streamed or not; the server lives on."""

import json

import pytest
import requests

from tests.support.server import body_of, serve, sparse_options
from tests.support.tiny_models import prompt_ids

BAD = [
    ("spec_prefill", 1),
    ("spec_prefill", "yes"),
    ("spec_prefill_method", "oracle"),
    ("spec_prefill_method", ["draft"]),
    ("spec_prefill_keep_ratio", 0),
    ("spec_prefill_keep_ratio", -1),
    ("spec_prefill_keep_ratio", 1.0001),
    ("spec_prefill_keep_ratio", 10**30),
    ("spec_prefill_keep_ratio", "NaN"),
    ("spec_prefill_keep_ratio", float("nan")),
    ("spec_prefill_keep_ratio", float("inf")),
    ("spec_prefill_keep_ratio", [0.1]),
    ("spec_prefill_min_tokens", -5),
    ("spec_prefill_min_tokens", 0.5),
    ("spec_prefill_min_tokens", 10**12),
    ("spec_prefill_keep_last", -1),
    ("spec_prefill_protect", [3]),
    ("spec_prefill_protect", [9, 3]),
    ("spec_prefill_protect", "0,3"),
    ("spec_prefill_protect", [[0, 3]]),
    ("spec_prefill_return_positions", None),
    ("spec_prefill_unknown", 1),
    ("spec_prefillkeep", 1),
]
NAMED = ("--served-model-name", "m")  # of the routes one takes no other
ROUTES = ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses")


@pytest.fixture(scope="module")
def server(pair_of, tmp_path_factory):
    target, draft = pair_of("llama")
    with serve(tmp_path_factory.mktemp("bad"), target, *sparse_options(draft), *NAMED) as server:
        yield server


@pytest.fixture(scope="module")
def switched_off(pair_of, tmp_path_factory):
    """The plugin is installed and loaded, the server was started without --spec-prefill."""
    with serve(tmp_path_factory.mktemp("off"), pair_of("llama")[0], *NAMED) as server:
        yield server


def _body(route, custom, **fields):
    if route == "/generate":
        return {"text": "hello", "sampling_params": {"max_new_tokens": 2, "custom_params": custom}, **fields}
    if route == "/v1/responses":
        return {"model": "m", "input": "hello", "max_output_tokens": 4, "custom_params": custom, **fields}
    prompt = {"prompt": "hello"} if route == "/v1/completions" else {"messages": [{"role": "user", "content": "hello"}]}
    return {"model": "m", "max_tokens": 2, "custom_params": custom, **prompt, **fields}


def _message(route, response):
    """Of an error in the route's own form."""
    body = response.json()
    if route == "/v1/messages":
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    inner = body.get("error", body)
    return inner if isinstance(inner, str) else inner["message"]


def _post(server, route, body):
    """As JSON text, since `requests` itself refuses NaN."""
    return requests.post(server.url + route, data=json.dumps(body), headers={"Content-Type": "application/json"}, timeout=60)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_bad_fields(server, route, stream):
    for field, value in BAD:
        response = _post(server, route, _body(route, {field: value}, stream=stream))
        assert response.status_code == 400, (field, value, response.text)
        assert field in _message(route, response), (field, value, response.text)
    assert _post(server, route, _body(route, {"spec_prefill": True})).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
def test_misplaced_fields_are_not_ignored(server, route):
    response = _post(server, route, _body(route, {}, spec_prefill_keep_ratio=0.3))
    assert response.status_code == 400
    assert "spec_prefill_keep_ratio" in response.text
    assert "custom_params" in response.text


@pytest.mark.parametrize(
    ("route", "place"),
    [
        ("/generate", ("custom_params",)),  # where the OpenAI routes read them
        ("/generate", ("extra_body", "custom_params")),
        ("/v1/completions", ("sampling_params", "custom_params")),  # where /generate reads them
        ("/v1/completions", ("sampling_params",)),
        ("/v1/chat/completions", ("extra_body", "custom_params")),
        ("/v1/chat/completions", ("extra_body",)),
        ("/api/generate", ("options",)),
        ("/encode", ("sampling_params", "custom_params")),
    ],
)
def test_fields_where_another_route_reads_them_are_not_ignored(server, route, place):
    misplaced = {"spec_prefill": False}
    for name in reversed(place):
        misplaced = {name: misplaced}
    body = _body(route, {})
    if route != "/generate":
        del body["custom_params"]
    response = _post(server, route, {**body, **misplaced})
    assert response.status_code == 400, response.text
    assert "spec_prefill is not read here" in response.text


@pytest.mark.parametrize("route", ["/v1/messages/count_tokens", "/api/chat", "/api/generate"])
@pytest.mark.parametrize("place", ["spec_prefill_keep_ratio", "custom_params"])
def test_routes_that_read_no_fields_say_so(server, route, place):
    fields = (
        {"spec_prefill_keep_ratio": 0.3} if place != "custom_params" else {"custom_params": {"spec_prefill_keep_ratio": 0.3}}
    )
    message = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "max_tokens": 2}
    response = _post(server, route, {"model": "m", **message, **fields})
    assert response.status_code == 400, response.text
    assert "spec_prefill_keep_ratio" in response.text


def test_misplaced_in_sampling_params(server):
    response = _post(server, "/generate", {"text": "x", "sampling_params": {"spec_prefill": False}})
    assert response.status_code == 400
    assert "spec_prefill" in response.text


def test_span_beyond_the_prompt(server):
    body = body_of(prompt_ids(100, seed=1), custom={"spec_prefill_protect": [90, 101]})
    response = _post(server, "/generate", body)
    assert response.status_code == 400
    assert "spec_prefill_protect" in response.text
    assert "100 tokens" in response.text


def test_one_bad_request_in_a_batch(server):
    good, bad = {"max_new_tokens": 2}, {"max_new_tokens": 2, "custom_params": {"spec_prefill": 3}}
    response = _post(server, "/generate", {"text": ["a", "b"], "sampling_params": [good, bad]})
    assert response.status_code == 400
    assert "spec_prefill" in response.text


@pytest.mark.parametrize("route", ROUTES)
def test_without_the_flag_every_field_is_refused(switched_off, route):
    for custom in ({"spec_prefill": True}, {"spec_prefill": False}, {"spec_prefill_keep_ratio": 0.5}):
        response = _post(switched_off, route, _body(route, custom))
        assert response.status_code == 400, response.text
        assert next(iter(custom)) in response.text
        assert "--spec-prefill" in response.text
    assert _post(switched_off, route, _body(route, {"other": 1})).status_code == 200


def test_without_the_flag_replies_are_untouched(switched_off):
    reply = switched_off.generate(prompt_ids(700, seed=2))
    assert "spec_prefill" not in reply["meta_info"]
    assert "spec_prefill" not in switched_off.state()
