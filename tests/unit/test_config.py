"""Flags beat the environment, the environment beats the file; what cannot be meant is refused and names the flag."""

import json
import subprocess
import sys

import msgspec
import pytest

from specprefill_sgl.config import ENVIRONMENT_VARIABLE, ConfigError, resolve
from specprefill_sgl.selection.rule import Rule

ON = {"enabled": True, "draft_model_path": "d"}


def test_off_without_the_switch():
    assert resolve({"enabled": False}, {}) is None


def test_defaults_are_the_documented_ones():
    config = resolve(ON, {})
    assert (config.keep_ratio, config.min_tokens, config.selection, config.draft_max_tokens) == (0.2, 1024, "best", None)
    assert (config.keep_first, config.keep_last, config.keep_min, config.backlog) == (0, None, None, 8)
    assert config.rule == Rule(
        lookahead=8, window=0, over_votes="max", pool_kernel=31, chunk_size=8, budget_unit="tokens",
        ignore_first=4, ignore_tail=True, keep_last=48,
    )  # fmt: skip


def test_calibrated_heads_make_the_question_vote():
    config = msgspec.structs.replace(resolve(ON, {}), calibrated={"draft": ((3, 4), (5, 6))})
    assert (config.rule.heads, config.rule.window, config.rule.lookahead) == (((3, 4), (5, 6)), 48, 8)
    assert config.rule_for("paper", "draft") == Rule()


def test_the_papers_rule_is_the_papers():
    rule = resolve({**ON, "selection": "paper"}, {}).rule
    assert (rule.lookahead, rule.window, rule.over_votes, rule.pool_kernel) == (8, 0, "mean", 13)
    assert (rule.chunk_size, rule.budget_unit, rule.ignore_first, rule.ignore_tail) == (32, "chunks", 0, False)
    assert (rule.keep_last, rule.heads) == (0, None)


def test_flags_change_the_servers_rule_only():
    config = resolve({**ON, "window": 16, "ignore_tail": "false", "lookahead": 12}, {})
    assert (config.rule.window, config.rule.ignore_tail, config.rule.chunk_size, config.most_lookahead) == (16, False, 8, 12)
    assert config.rule_for("paper", "draft") == Rule()


def test_flag_beats_environment_beats_file(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"spec-prefill-keep-ratio": 0.5, "chunk_size": 16, "spec_prefill_lookahead": 4}))
    environ = {ENVIRONMENT_VARIABLE: json.dumps({"keep_ratio": 0.4, "chunk_size": 64})}
    config = resolve({**ON, "config": str(file), "keep_ratio": 0.3}, environ)
    assert (config.keep_ratio, config.chunk_size, config.lookahead) == (0.3, 64, 4)


def test_keep_last_of_nothing_is_not_the_default():
    assert resolve({**ON, "keep_last": 0}, {}).keep_last == 0
    assert resolve({}, {ENVIRONMENT_VARIABLE: '{"draft_model_path": "d", "keep-last": 96}'}).keep_last == 96


def test_environment_alone_switches_on(tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{"draft_model_path": "d"}')
    assert resolve({}, {ENVIRONMENT_VARIABLE: str(file)}).draft_model_path == "d"
    assert resolve({}, {ENVIRONMENT_VARIABLE: '{"spec_prefill": false, "draft_model_path": "d"}'}) is None


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"keep_ratio": 0.5}, "--spec-prefill-keep-ratio"),
        ({"draft_model_path": "d"}, "--spec-prefill-draft-model-path"),
        ({**ON, "keep_ratio": 0.0}, "--spec-prefill-keep-ratio"),
        ({**ON, "keep_ratio": 1.01}, "--spec-prefill-keep-ratio"),
        ({**ON, "keep_ratio": float("nan")}, "--spec-prefill-keep-ratio"),
        ({**ON, "min_tokens": -1}, "--spec-prefill-min-tokens"),
        ({**ON, "chunk_size": 0}, "--spec-prefill-chunk-size"),
        ({**ON, "lookahead": 0}, "--spec-prefill-lookahead"),
        ({**ON, "pool_kernel": 4}, "--spec-prefill-pool-kernel"),
        ({**ON, "keep_first": -1}, "--spec-prefill-keep-first"),
        ({**ON, "keep_last": -1}, "--spec-prefill-keep-last"),
        ({**ON, "keep_last": 2**31}, "--spec-prefill-keep-last"),
        ({**ON, "keep_min": 0.3}, "--spec-prefill-keep-min"),
        ({**ON, "backlog": 0}, "--spec-prefill-backlog"),
        ({**ON, "selection": "worst"}, "--spec-prefill-selection"),
        ({**ON, "window": 257}, "--spec-prefill-window"),
        ({**ON, "window_votes": "alone"}, "--spec-prefill-window-votes"),
        ({**ON, "over_votes": "sum"}, "--spec-prefill-over-votes"),
        ({**ON, "budget_unit": "words"}, "--spec-prefill-budget-unit"),
        ({**ON, "ignore_tail": "maybe"}, "--spec-prefill-ignore-tail"),
        ({**ON, "ignore_first": -1}, "--spec-prefill-ignore-first"),
        ({**ON, "draft_max_tokens": 8}, "--spec-prefill-draft-max-tokens"),
        ({**ON, "config": "/no/such/file"}, "--spec-prefill-config"),
    ],
)
def test_refusals_name_the_flag(flags, named):
    with pytest.raises(ConfigError) as error:
        resolve(flags, {})
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"keep_ratoi": 1}', ENVIRONMENT_VARIABLE),
        (b"{", ENVIRONMENT_VARIABLE),
        (b"[1]", ENVIRONMENT_VARIABLE),
        (b"\xff\xfe", ENVIRONMENT_VARIABLE),
        (None, ENVIRONMENT_VARIABLE),
        (b'{"draft_model_path": "d", "keep_ratio": "x"}', "--spec-prefill-keep-ratio"),
        (b'{"draft_model_path": "d", "calibrated": [[1, 2]]}', ENVIRONMENT_VARIABLE),
        (b'{"draft_model_path": "d", "keep_last": 1.5}', "--spec-prefill-keep-last"),
    ],
)
def test_bad_environment_is_refused(content, named, tmp_path):
    file = tmp_path / "c.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        resolve({}, {ENVIRONMENT_VARIABLE: str(file)})
    assert named in str(error.value)


def test_a_home_directory_is_found():
    assert not resolve({**ON, "draft_model_path": "~/draft"}, {}).draft_model_path.startswith("~")


def test_package_import_brings_neither_torch_nor_sglang():
    code = "import specprefill_sgl, sys; assert not {'torch', 'sglang'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
