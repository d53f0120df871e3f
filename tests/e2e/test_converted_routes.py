"""Request fields and the reply object on the routes of agents, Anthropic's `/v1/messages` and OpenAI's `/v1/responses`.

SGLang makes chat messages of both, so the chat route says what is to be kept of them.
"""

import anthropic
import openai
import pytest
from transformers import AutoTokenizer

from tests.support.conversation import TEMPLATE, message, span
from tests.support.server import serve, sparse_options
from tests.support.streams import until

SYSTEM, *TURNS = CONVERSATION = [
    message("system", "a", 150),
    message("user", "b", 400),
    message("assistant", "d", 120),
    message("user", "e", 300),
]
SPARSE = {"spec_prefill_keep_ratio": 0.1, "spec_prefill_return_positions": True}
ROUTES = ["/v1/messages", "/v1/responses"]


@pytest.fixture(scope="module")
def server(pair_of, tmp_path_factory):
    target, draft = pair_of("llama")
    folder = tmp_path_factory.mktemp("converted")
    (folder / "template.jinja").write_text(TEMPLATE)
    options = [*sparse_options(draft, protect_roles="system"), "--chat-template", str(folder / "template.jinja")]
    with serve(folder, target, *options, "--enable-response-store") as running:
        running.model, running.tokenizer = str(target.resolve()), AutoTokenizer.from_pretrained(target)
        yield running


def _create(server, route, custom, **fields):
    """Through the route's own client."""
    server.flush()
    extra = {"custom_params": custom, "temperature": 0}
    if route == "/v1/messages":
        client = anthropic.Anthropic(base_url=server.url, api_key="none")
        create, how = client.messages.create, {"system": SYSTEM["content"], "messages": TURNS, "max_tokens": 16}
    else:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
        extra["max_output_tokens"] = 18  # SGLang generates two less
        create, how = client.responses.create, {"instructions": SYSTEM["content"], "input": TURNS}
    return create(model=server.model, extra_body=extra, **how, **fields)


def _chat(server, custom):
    """The same on the chat route: its text and its reply object."""
    server.flush()
    body = {"model": server.model, "messages": CONVERSATION, "max_tokens": 16, "temperature": 0, "custom_params": custom}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    reply = response.json()
    return reply["choices"][0]["message"]["content"], reply["sglext"]["spec_prefill"]


def _text(route, reply):
    return reply.content[0].text if route == "/v1/messages" else reply.output_text


@pytest.mark.parametrize("custom", [SPARSE, SPARSE | {"spec_prefill_protect_roles": ["assistant"]}], ids=["default", "asked"])
@pytest.mark.parametrize("route", ROUTES)
def test_same_as_on_the_chat_route(server, route, custom):
    reply = _create(server, route, custom)
    info = reply.sglext["spec_prefill"]
    text, wanted = _chat(server, custom)
    assert (_text(route, reply), info["positions"]) == (text, wanted["positions"])
    assert info["applied"]
    whole = 2 if "spec_prefill_protect_roles" in custom else 0
    assert set(span(server.tokenizer, CONVERSATION, whole)) <= set(info["positions"])
    assert not set(span(server.tokenizer, CONVERSATION, 1)) <= set(info["positions"])


@pytest.mark.parametrize("route", ROUTES)
def test_a_request_may_switch_it_off(server, route):
    info = _create(server, route, {"spec_prefill": False}).sglext["spec_prefill"]
    assert (info["applied"], info["reason"]) == (False, "disabled_by_request")


@pytest.mark.parametrize("route", ROUTES)
def test_without_fields_the_servers_defaults_hold(server, route):
    info = _create(server, route, {}).sglext["spec_prefill"]
    assert (info["applied"], info["keep_ratio_used"]) == (True, 0.2)
    assert info["kept_tokens"] >= len(span(server.tokenizer, CONVERSATION, 0)) + 60


@pytest.mark.parametrize("route", ROUTES)
def test_a_stream_ends_with_the_reply_object(server, route):
    wanted = _create(server, route, SPARSE)
    events = list(_create(server, route, SPARSE, stream=True))
    holders = [getattr(event, "response", event) for event in events if _ends(event)]
    assert [one.sglext["spec_prefill"]["positions"] for one in holders] == [wanted.sglext["spec_prefill"]["positions"]]
    assert sum("sglext" in event.to_json() for event in events) == 1
    deltas = [event.delta for event in events if event.type in ("content_block_delta", "response.output_text.delta")]
    assert "".join(delta if isinstance(delta, str) else delta.text for delta in deltas) == _text(route, wanted)


def _ends(event):
    return event.type in ("message_delta", "response.completed", "response.incomplete")


def test_a_stored_response_has_it(server):
    started = _create(server, "/v1/responses", SPARSE, background=True)
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    until(lambda: client.responses.retrieve(started.id).status in ("completed", "incomplete"))
    assert client.responses.retrieve(started.id).sglext["spec_prefill"]["applied"]


def test_a_span_beyond_the_prompt(server):
    custom = {"spec_prefill_protect": [0, 5000]}
    for route, error in zip(ROUTES, (anthropic.BadRequestError, openai.BadRequestError), strict=True):
        with pytest.raises(error, match="spec_prefill_protect reaches beyond"):
            _create(server, route, custom)
