"""Chat messages of protected roles are kept whole; on other routes the field is refused."""

import contextlib
import json

import pytest
from transformers import AutoTokenizer

from tests.support.conversation import TEMPLATE, message, span
from tests.support.server import serve, sparse_options

MOVING_TEMPLATE = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% set rest = messages[1:] if system else messages %}"
    "{% if rest[-1]['role'] != 'user' %}{{ raise_exception('the last message must be the user\\'s') }}{% endif %}"
    "{% for m in rest %}<{{ m['role'] }}>{% if loop.last %}{{ system }}{% endif %}{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KEEP = 0.1


@pytest.fixture(scope="module")
def server(pair_of, tmp_path_factory):
    with _serving(TEMPLATE, pair_of, tmp_path_factory) as running:
        yield running


@pytest.fixture(scope="module")
def strict(pair_of, tmp_path_factory):
    """A server whose template wants a user message, puts the system message into the last one, and takes turns."""
    with _serving(MOVING_TEMPLATE, pair_of, tmp_path_factory) as running:
        yield running


@contextlib.contextmanager
def _serving(template, pair_of, tmp_path_factory):
    target, draft = pair_of("llama")
    folder = tmp_path_factory.mktemp("server")
    (folder / "template.jinja").write_text(template)
    options = [*sparse_options(draft, protect_roles="system"), "--chat-template", str(folder / "template.jinja")]
    with serve(folder, target, *options) as running:
        running.tokenizer = AutoTokenizer.from_pretrained(target)
        yield running


CONVERSATION = [
    message("system", "a", 150),
    message("user", "b", 400),
    message("tool", "c", 170),
    message("assistant", "d", 120),
    message("user", "e", 300),
]


def _chat(server, messages=CONVERSATION, **custom):
    server.flush()
    custom = {"spec_prefill_keep_ratio": KEEP, "spec_prefill_return_positions": True, **custom}
    body = {
        "model": "m",
        "messages": messages,
        "max_tokens": 4,
        "temperature": 0,
        "custom_params": custom,
        "return_meta_info": True,
    }
    return server.post("/v1/chat/completions", body)


def _kept(server, **custom):
    response = _chat(server, **custom)
    assert response.status_code == 200, response.text
    info = response.json()["choices"][0]["meta_info"]["spec_prefill"]
    assert info["applied"]
    return set(info["positions"]), info


def _span(server, index):
    return span(server.tokenizer, CONVERSATION, index)


def test_the_default_of_the_flag_protects_the_systemmessage(server):
    kept, info = _kept(server)
    assert set(_span(server, 0)) <= kept
    assert not set(_span(server, 1)) <= kept
    assert info["keep_ratio"] < 0.6


@pytest.mark.parametrize(("roles", "whole"), [(["tool"], [2]), (["system", "tool"], [0, 2]), (["user"], [1, 4]), ([], [])])
def test_protected_roles_are_kept_whole(server, roles, whole):
    kept, _ = _kept(server, spec_prefill_protect_roles=roles)
    for index in whole:
        assert set(_span(server, index)) <= kept, index


def test_a_message_of_the_assistant_in_the_middle(server):
    """SGLang rewrites a conversation that ends with one; offsets must not be read off that."""
    kept, _ = _kept(server, spec_prefill_protect_roles=["assistant"])
    assert set(_span(server, 3)) <= kept
    assert not set(_span(server, 2)) <= kept


def test_roles_need_messages(server):
    body = {"model": "m", "messages": CONVERSATION, "input_ids": list(range(3, 300)), "max_tokens": 2}
    response = server.post("/v1/chat/completions", {**body, "custom_params": {"spec_prefill_protect_roles": ["user"]}})
    assert response.status_code == 400
    assert "spec_prefill_protect_roles" in response.text
    assert server.post("/v1/chat/completions", body).status_code == 200  # the server's own roles are no reason to refuse it


def test_spans_and_roles_add_up(server):
    span = _span(server, 1)
    kept, _ = _kept(server, spec_prefill_protect_roles=["tool"], spec_prefill_protect=[span[0], span[0] + 40])
    assert set(_span(server, 2)) | set(span[:40]) <= kept


@pytest.mark.parametrize("value", ["system", [1], [""], {"a": 1}, 3, None])
def test_bad_roles_are_a_400_that_names_the_field(server, value):
    response = _chat(server, spec_prefill_protect_roles=value)
    assert response.status_code == 400
    assert "spec_prefill_protect_roles" in response.text


def test_a_template_that_moves_a_message_makes_everything_kept(strict):
    """What cannot be located is not dropped: the default protects the system message wherever it is."""
    messages = [CONVERSATION[0], CONVERSATION[1], CONVERSATION[3], CONVERSATION[4]]
    response = _chat(strict, messages)
    assert response.status_code == 200, response.text
    info = response.json()["choices"][0]["meta_info"]["spec_prefill"]
    assert info["kept_tokens"] == info["prompt_tokens"]


def test_a_template_that_refuses_parts_of_a_conversation_still_protects(strict):
    messages = [CONVERSATION[1], CONVERSATION[3], CONVERSATION[4]]
    response = _chat(strict, messages, spec_prefill_protect_roles=["assistant"])
    assert response.status_code == 200, response.text
    info = response.json()["choices"][0]["meta_info"]["spec_prefill"]
    text = "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>"
    encoded = strict.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    start, end = text.index("<assistant> d"), text.index("<user> e")
    inside = {i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start}
    assert inside <= set(info["positions"])
    assert info["kept_tokens"] < info["prompt_tokens"]


def test_other_routes_have_no_roles(server):
    custom = {"spec_prefill_protect_roles": ["system"]}
    for path, body in (
        ("/generate", {"text": "x", "sampling_params": {"custom_params": custom}}),
        ("/v1/completions", {"model": "m", "prompt": "x", "custom_params": custom}),
    ):
        response = server.post(path, body)
        assert response.status_code == 400
        assert "spec_prefill_protect_roles" in json.dumps(response.json())
