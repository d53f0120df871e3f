"""What predicted KV cannot be combined with is refused by name in the launcher, on ServerArgs that SGLang resolved."""

import pytest

from specprefill_sgl import compat
from specprefill_sgl.compat import options
from specprefill_sgl.config import ConfigError, resolve
from specprefill_sgl.methods import registry
from tests.support import predictors

# flag of a row of compat's table -> a command line that switches it on
COMMAND_LINES = {
    "--disable-radix-cache": "--disable-radix-cache",
    "--speculative-algorithm": "--speculative-algorithm NGRAM --speculative-num-draft-tokens 4",
    "--enable-lora": "--enable-lora --max-lora-rank 8 --lora-target-modules q_proj",
    "--pp-size": "--pp-size 2",
    "--attn-dp-size": "--tp 2 --dp 2 --enable-dp-attention",
    "--disaggregation-mode": "--disaggregation-mode prefill",
    "--enable-hierarchical-cache": "--enable-hierarchical-cache",
    "--enable-unified-memory": "--enable-unified-memory --attention-backend triton",
    "--kv-cache-dtype": "--kv-cache-dtype fp8_e5m2",
}


@pytest.fixture
def check(pair_of, tmp_path):
    target, _ = pair_of("llama")
    predictor = predictors.save_random(tmp_path / "predictor", target, 2)

    def check(server_args, **given):
        settings = {"enabled": True, "method": "kv-prediction", "predictor": str(predictor), **given}
        config = resolve(settings, {})
        registry.check(config)
        registry.check_at_start(config, server_args, compat.target_model_config(server_args))

    return check


@pytest.mark.parametrize("line", ["", "--tp 2", "--enable-mixed-chunk", "--page-size 16"])
def test_other_options_are_accepted(check, resolved, line):
    check(resolved(line))


@pytest.mark.parametrize("flag", COMMAND_LINES)
def test_each_option_is_refused_by_name(check, resolved, flag):
    with pytest.raises(ConfigError, match=f"--spec-prefill-method kv-prediction cannot be combined with {flag}: "):
        check(resolved(COMMAND_LINES[flag], check=False))


def test_command_lines_are_of_options_that_are_refused():
    assert COMMAND_LINES.keys() == {flag for flag, _, _ in options._REJECTED_BESIDE_PREDICTION}


def test_a_draft_that_is_not_read_is_refused(check, resolved, pair_of):
    with pytest.raises(ConfigError, match="--spec-prefill-draft-model-path has no effect with --spec-prefill-predictor"):
        check(resolved(""), draft_model_path=str(pair_of("llama")[1]))


def test_a_predictor_of_another_target_is_refused(check, resolved, pair_of, tmp_path):
    other = predictors.save_random(tmp_path / "other", pair_of("qwen3")[0], 1)
    with pytest.raises(ConfigError, match="was trained for another target"):
        check(resolved(""), predictor=str(other))


def test_the_tail_is_a_token_at_least(check, resolved):
    with pytest.raises(ConfigError, match="--spec-prefill-tail must be at least 1, got 0"):
        check(resolved(""), tail=0)


def test_the_memory_of_what_is_kept_of_tokens_is_said(resolved, pair_of, tmp_path):
    from specprefill_sgl.cli import memory

    predictor = predictors.save_random(tmp_path / "predictor", pair_of("llama")[0], 2)
    config = resolve({"enabled": True, "method": "kv-prediction", "predictor": str(predictor), "draft_max_tokens": 4096}, {})
    lines = memory.report(config, resolved("--dtype float32"))
    # two layers of two heads of 16 numbers, keys and values; and 64 numbers of hidden state
    assert lines[:2] == [
        "kv-prediction KV pool: 4096 tokens, 2 MiB",
        "kv-prediction states of the pool's tokens: 1 MiB",
    ]


def test_what_is_experimental_says_so(tmp_path):
    config = resolve({"enabled": True, "method": "kv-prediction", "predictor": str(tmp_path)}, {})

    class Args:
        disaggregation_mode = "null"

    assert all("experimental" in warning for warning in registry.warnings(config, Args))
    assert len(list(registry.warnings(config, Args))) == 1
