"""What the method lazy does not go with is refused by name in the launcher, on ServerArgs that SGLang resolved."""

import re
from types import SimpleNamespace

import msgspec
import pytest

from specprefill_sgl import compat
from specprefill_sgl.calibration import heads_file
from specprefill_sgl.compat import lazy
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, resolve
from specprefill_sgl.methods import registry
from specprefill_sgl.methods.lazy.heads import unheard

# flag of a row of compat's table -> a command line that switches it on
COMMAND_LINES = {
    "--enable-mixed-chunk": "--enable-mixed-chunk",
    "--speculative-algorithm": "--speculative-algorithm NGRAM",
    "--pp-size": "--pp-size 2",
    "--attn-dp-size": "--tp 2 --attn-dp-size 2",
    "--disaggregation-mode": "--disaggregation-mode prefill",
    "--enable-lora": "--lora-paths one=/no/such/adapter",
    "--enable-two-batch-overlap": "--enable-two-batch-overlap --moe-a2a-backend deepep",
    "--enable-return-hidden-states": "--enable-return-hidden-states",
    "--enable-return-routed-experts": "--enable-return-routed-experts",
    "--enable-hierarchical-cache": "--enable-hierarchical-cache",
    "--kv-cache-dtype": "--kv-cache-dtype fp8_e5m2",
    "--page-size": "--page-size 16",
}


def _check_at_start(server_args, **given):
    config = resolve({"enabled": True, "method": "lazy", "layers": 2, **given}, {})
    registry.check(config)
    registry.check_at_start(config, server_args, compat.target_model_config(server_args))


@pytest.mark.parametrize("line", ["", "--tp 2", "--disable-overlap-schedule", "--disable-radix-cache", "--schedule-policy lof"])
def test_other_options_are_accepted(resolved, line):
    _check_at_start(resolved(line))


@pytest.mark.parametrize(("flag", "line"), COMMAND_LINES.items())
def test_each_option_is_refused_by_name(resolved, flag, line):
    with pytest.raises(ConfigError, match=re.escape(f"--spec-prefill-method lazy cannot be combined with {flag}: ")):
        _check_at_start(resolved(line))


def test_command_lines_are_of_options_that_are_refused():
    assert COMMAND_LINES.keys() == {flag for flag, _, _ in lazy._REFUSED}


def test_attention_backends_that_were_not_run_are_refused():
    kinds = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
    off = {"enable_mixed_chunk": False, "speculative_algorithm": None, "pp_size": 1, "attn_dp_size": 1, "page_size": 1}
    off |= dict.fromkeys(("enable_lora", "enable_two_batch_overlap", "enable_hierarchical_cache"), False)
    off |= {"enable_return_hidden_states": False, "enable_return_routed_experts": False, "kv_cache_dtype": "auto"}
    args = {**off, "disaggregation_mode": "null", **dict.fromkeys(kinds, "triton")}
    assert list(lazy.lazy_refusals(SimpleNamespace(**args))) == []
    for kind in kinds:
        (said,) = lazy.lazy_refusals(SimpleNamespace(**{**args, kind: "fa3"}))
        assert f"--{kind.replace('_', '-')} fa3" in said


@pytest.mark.parametrize("layers", ["3", "2,3"])
def test_layers_lie_below_the_targets_last(resolved, layers):
    with pytest.raises(ConfigError, match=f"--spec-prefill-layers must be less than the target's 3, got {layers}"):
        _check_at_start(resolved(""), layers=layers)


def test_a_backfill_has_nothing_to_do(resolved):
    with pytest.raises(ConfigError, match="--spec-prefill-backfill has no effect with --spec-prefill-method lazy"):
        _check_at_start(resolved(""), backfill="turn")


def test_a_target_that_was_not_run_in_parts_is_refused():
    model = SimpleNamespace(hf_config=SimpleNamespace(architectures=["Gemma2ForCausalLM"]), sliding_window_size=None)
    with pytest.raises(ConfigError, match="cannot run this target, Gemma2ForCausalLM"):
        compat.check_lazy(model)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": "2,x"}, "--spec-prefill-layers must be numbers separated by commas, got 2,x"),
        ({"layers": "1,2"}, "--spec-prefill-layers must be at least 2, and ascend, got 1,2"),
        ({"layers": "3,2"}, "--spec-prefill-layers must be at least 2, and ascend, got 3,2"),
        ({"layers": []}, "--spec-prefill-layers must be at least 2, and ascend"),
        ({"keep_by_layer": []}, "--spec-prefill-keep-by-layer must be one number for each of --spec-prefill-layers"),
        ({"keep_by_layer": "0.5,0.2"}, "--spec-prefill-keep-by-layer must be one number for each of --spec-prefill-layers"),
        ({"layers": "2,3", "keep_by_layer": "0.2,0.5"}, "--spec-prefill-keep-by-layer must be in (0, 1), and descend"),
        ({"layers": "2,3", "keep_by_layer": "1,0.5"}, "--spec-prefill-keep-by-layer must be in (0, 1), and descend"),
        (
            {"layers": "2,3", "keep_by_layer": "0.5,0.3", "keep_ratio": 0.2},
            "--spec-prefill-keep-by-layer must be --spec-prefill-keep-ratio 0.2 at the last layer, got 0.5,0.3",
        ),
        ({"aux_cache_bytes": 0}, "--spec-prefill-aux-cache-bytes must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, said):
    with pytest.raises(ConfigError) as error:
        resolve({"enabled": True, "method": "lazy", "layers": 2, **given}, {})
    assert str(error.value).startswith(said)


@pytest.fixture
def with_heads(resolved, pair_of, tmp_path):
    """Makes the configuration with these heads of the target, calibrated in a file."""

    def make(heads, **given):
        path, target = tmp_path / "heads.json", pair_of("llama")[0]
        heads_file.save(path, target, heads, {})
        config = resolve({"enabled": True, "method": "lazy", "layers": 2, "heads": str(path), **given}, {})
        registry.check(config)
        server_args = resolved("")
        found = heads_file.load_all(config.heads, registry.model_paths(config, server_args))
        config = msgspec.structs.replace(config, calibrated=found)
        registry.check_at_start(config, server_args, compat.target_model_config(server_args))
        return config

    return make


def test_heads_are_the_targets(with_heads):
    assert with_heads(((2, 1), (0, 3))).calibrated == {"lazy": ((2, 1), (0, 3))}
    assert with_heads(((1, 1),), method="early-layers,lazy").calibrated.keys() == {"early-layers", "lazy"}


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        (((2, 0), (2, 1)), "with --spec-prefill-method lazy: none of its heads is in a layer below 2, the first of"),
        (((0, 0), (3, 1)), ": the target has no head 1 in layer 3."),
        (((0, 0), (1, 4)), ": the target has no head 4 in layer 1."),
    ],
)
def test_heads_that_cannot_vote_are_refused(with_heads, heads, said):
    with pytest.raises(ConfigError, match=rf"^--spec-prefill-heads \S+heads.json cannot be used *{re.escape(said)}"):
        with_heads(heads)


@pytest.mark.parametrize(
    ("layers", "heads", "said"),
    [
        ((2, 4), ((1, 0), (2, 0)), []),
        ((2, 4), ((1, 0), (0, 0)), ["layers 2 to 3: at layer 4 the last quarter"]),
        ((2,), ((1, 0), (2, 0), (3, 1)), ["2 of 3 calibrated heads are in layers from 2 on"]),
        ((2, 3), (), []),
    ],
)
def test_it_is_said_where_no_head_votes(layers, heads, said):
    config = SpecPrefillConfig(method=("lazy",), layers=layers, calibrated={"lazy": heads} if heads else {})
    sentences = list(unheard(config))
    assert [part in sentence for part, sentence in zip(said, sentences, strict=True)] == [True] * len(said)


def test_the_last_of_the_layers_keeps_the_keep_ratio():
    config = resolve({"enabled": True, "method": "lazy", "layers": "2,3", "keep_by_layer": "0.5,0.1"}, {})
    assert (config.layers, config.keep_by_layer, config.keep_ratio) == ((2, 3), (0.5, 0.1), 0.1)


def test_early_layers_reads_one_number(resolved):
    with pytest.raises(ConfigError, match="--spec-prefill-layers must be one number for --spec-prefill-method early-layers"):
        _check_at_start(resolved(""), method="early-layers,lazy", layers="2,3")


def test_the_memory_of_what_waits_is_said(resolved):
    """More than 2 GiB, too: the Aux Cache counts bytes, not tokens."""
    from specprefill_sgl.cli import memory

    config = resolve({"enabled": True, "method": "lazy", "layers": 2, "aux_cache_bytes": 3 * 2**30}, {})
    lines = memory.report(config, resolved("--dtype float32"))
    assert lines == ["lazy states of tokens that wait: at most 3072 MiB, 0.2 KiB each"]  # 64 numbers
