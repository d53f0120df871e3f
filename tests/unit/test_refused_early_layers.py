"""What a target's first layers cannot run beside is refused by name in the launcher, on ServerArgs that SGLang resolved."""

import pytest

from specprefill_sgl import compat
from specprefill_sgl.compat import models
from specprefill_sgl.config import ConfigError, resolve
from specprefill_sgl.methods import registry

# flag of a row of compat's table -> the command lines that switch it on
COMMAND_LINES = {
    "--enable-lora": ["--enable-lora --max-lora-rank 8 --lora-target-modules q_proj", "--lora-paths one=/no/such/adapter"],
    "--enable-return-routed-experts": ["--enable-return-routed-experts"],
    "--enable-two-batch-overlap": ["--enable-two-batch-overlap --moe-a2a-backend deepep"],
    "--pp-size": ["--pp-size 2"],
    "--attn-dp-size": ["--tp 2 --attn-dp-size 2", "--tp 2 --dp 2 --enable-dp-attention"],
}


def _check_at_start(server_args, layers=2):
    config = resolve({"enabled": True, "method": "early-layers", "layers": layers}, {})
    registry.check(config)
    registry.check_at_start(config, server_args, compat.target_model_config(server_args))


@pytest.mark.parametrize("line", ["", "--tp 2", "--enable-mixed-chunk", "--disable-radix-cache"])
def test_other_options_are_accepted(resolved, line):
    _check_at_start(resolved(line))


@pytest.mark.parametrize(("flag", "line"), [(flag, line) for flag, lines in COMMAND_LINES.items() for line in lines])
def test_each_option_is_refused_by_name(resolved, flag, line):
    with pytest.raises(ConfigError, match=f"--spec-prefill-method early-layers cannot be combined with {flag}: "):
        _check_at_start(resolved(line))


def test_command_lines_are_of_options_that_are_refused():
    assert COMMAND_LINES.keys() == {flag for flag, _, _ in models._REFUSED_BESIDE_FIRST_LAYERS}


@pytest.mark.parametrize("layers", [3, 4])
def test_all_layers_of_the_target_are_too_many(resolved, layers):
    with pytest.raises(ConfigError, match=f"--spec-prefill-layers must be less than the target's 3, got {layers}"):
        _check_at_start(resolved(""), layers)
