"""Running requests that go back to the queue: how many it takes, and servers where they never could are refused by the flag."""

import re
from contextlib import nullcontext

import pytest

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError, resolve
from specprefill_sgl.hooks import frontend, launch
from specprefill_sgl.hooks.readmission import queue_room
from specprefill_sgl.methods import registry
from specprefill_sgl.models.sizes import MAX_PROMPTS
from specprefill_sgl.request.options import RequestError

REVIVE, ANSWER, TURN = {"revive_every": 3}, {"backfill": "answer"}, {"backfill": "turn"}


@pytest.mark.parametrize(
    ("limit", "waiting", "room"),
    [(None, 999, MAX_PROMPTS), (100, 0, 99), (16, 0, 15), (4, 1, 2), (4, 3, 0), (4, 9, 0), (2, 0, 1), (1, 0, 0)],
)
def test_the_queue_takes_them_and_one_that_arrives(limit, waiting, room):
    assert queue_room(limit, waiting) == room


def _check_at_start(server_args, draft, settings):
    config = resolve({"enabled": True, "draft_model_path": str(draft), **settings}, {})
    registry.check_at_start(config, server_args, compat.target_model_config(server_args))
    return config


@pytest.mark.parametrize(
    ("line", "settings", "field"),
    [
        ("--max-queued-requests 1", REVIVE, "revive_every"),
        ("--max-queued-requests 1", ANSWER, "backfill"),
        ("--max-queued-requests 0", REVIVE, "revive_every"),
        ("--disable-radix-cache", REVIVE, "revive_every"),
        ("--disable-radix-cache", TURN, "backfill"),
        ("--pp-size 2", REVIVE, "revive_every"),
        ("--pp-size 2", TURN, "backfill"),
        ("--pp-size 2", ANSWER, "backfill"),
    ],
)
def test_servers_where_it_never_works(resolved, pair_of, line, settings, field):
    """Refused at start, and where a request asks for it."""
    server_args, draft = resolved(line), pair_of("llama")[1]
    flag = f"--spec-prefill-{field.replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"^{flag} cannot be combined with {line}: [^.]*[.]$"):
        _check_at_start(server_args, draft, settings)
    setattr(server_args, launch._ATTRIBUTE, _check_at_start(server_args, draft, {}))
    custom = {f"spec_prefill_{name}": value for name, value in settings.items()}
    with pytest.raises(
        RequestError, match=re.escape(f"spec_prefill_{field} cannot be used: the server was started with {line}.")
    ):
        frontend._check_params({"custom_params": custom}, server_args)


@pytest.mark.parametrize(
    ("line", "settings"),
    [("--max-queued-requests 2", {**REVIVE, **ANSWER}), ("--max-queued-requests 1", TURN), ("--page-size 16", REVIVE)],
)
def test_servers_where_it_may_work(resolved, pair_of, line, settings):
    _check_at_start(resolved(line), pair_of("llama")[1], settings)


def test_a_reader_with_recurrent_states_forgets_prompts_in_larger_pages(resolved, model_of):
    """As its prefix cache does: tests/e2e/test_families.py."""
    server_args, draft = resolved("--page-size 16"), model_of("qwen3_5")
    said = (
        "--spec-prefill-revive-every cannot be combined with --page-size 16 and --spec-prefill-method draft: recurrent states"
    )
    with pytest.raises(ConfigError, match=said):
        _check_at_start(server_args, draft, REVIVE)
    _check_at_start(server_args, draft, {})
    _check_at_start(resolved(""), draft, REVIVE)


@pytest.mark.parametrize(
    ("line", "draft", "refused"),
    [("--page-size 16", "qwen3_5", True), ("--page-size 16", "qwen3_moe", False), ("", "qwen3_5", False)],
)
def test_nor_may_a_request_ask_such_a_reader(resolved, model_of, monkeypatch, line, draft, refused):
    monkeypatch.setattr("specprefill_sgl.hooks.verify", lambda: None)  # hooks are applied in servers only
    server_args = resolved(line)
    config = launch._checked(resolve({"enabled": True, "draft_model_path": str(model_of(draft))}, {}), server_args)
    setattr(server_args, launch._ATTRIBUTE, config)
    frontend._check_params({"custom_params": {"spec_prefill_keep_ratio": 0.2}}, server_args)
    with pytest.raises(RequestError, match="spec_prefill_revive_every cannot be used") if refused else nullcontext():
        frontend._check_params({"custom_params": {"spec_prefill_revive_every": 3}}, server_args)
