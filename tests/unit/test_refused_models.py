"""Models whose attention is not understood are refused by role, on SGLang's own ModelConfig; all others are accepted."""

import json
import shutil
from types import SimpleNamespace

import pytest

from specprefill_sgl import compat
from specprefill_sgl.compat import models
from specprefill_sgl.config import ConfigError
from tests.support.families import FAMILIES


@pytest.fixture
def model_config(pair_of, tmp_path):
    """ModelConfig of a tiny Llama whose config.json is altered."""
    from sglang.srt.configs.model_config import ModelConfig

    def make(name="plain", **changes):
        folder = tmp_path / name
        shutil.copytree(pair_of("llama")[1], folder)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **changes}))
        return ModelConfig(model_path=str(folder))

    return make


MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 6,
}
DSA = {**MLA, "architectures": ["DeepseekV32ForCausalLM"], "index_topk": 64, "index_head_dim": 32, "index_n_heads": 4}


def _check(target, draft):
    compat.check_target(target)
    compat.check_draft(draft)


def test_ordinary_attention_is_accepted(model_config):
    _check(model_config("target"), model_config("draft"))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_families_are_accepted_as_target_and_draft(model_config, model_of, name):
    from sglang.srt.configs.model_config import ModelConfig

    plain, model = model_config(), ModelConfig(model_path=str(model_of(name)))
    _check(model, plain)
    _check(plain, model)
    assert not compat.never_run(model)


@pytest.mark.parametrize(
    ("attribute", "value", "why"),
    [
        ("is_generation", False, "it does not generate"),
        ("is_encoder_decoder", True, "an encoder reads the whole prompt"),
        ("attention_arch", "SSM", "it has no attention layer"),
    ],
)
def test_models_of_other_kinds_are_refused(model_config, attribute, value, why):
    from sglang.srt.configs.model_config import AttentionArch

    odd = model_config()
    setattr(odd, attribute, AttentionArch[value] if attribute == "attention_arch" else value)
    with pytest.raises(ConfigError, match=why):
        _check(odd, model_config("other"))


def test_first_layers_with_a_sparse_index_cannot_read(model_config):
    compat.check_first_layers(model_config())
    with pytest.raises(ConfigError, match="--spec-prefill-method early-layers cannot read with this target: a sparse index"):
        compat.check_first_layers(model_config("sparse", **DSA))


@pytest.mark.parametrize("changes", [DSA, {"architectures": ["MiniMaxM3SparseForCausalLM"]}])
def test_sparse_attention_is_accepted_in_the_target_only_and_known_to_be_unrun(model_config, changes):
    sparse, plain = model_config("sparse", **changes), model_config()
    _check(sparse, plain)
    assert compat.never_run(sparse)
    with pytest.raises(ConfigError, match=r"cannot serve this draft model \(--spec-prefill-draft-model-path\): a sparse index"):
        _check(plain, sparse)


REFUSED = {
    "DeepSeek V4": {"architectures": ["DeepseekV4ForCausalLM"]},
    "QSA": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 2048,
        "indexer_compress_ratio": 4,
    },
    "index_kpool": {**DSA, "index_kpool": 4},
    "Inkling": {"architectures": ["InklingForConditionalGeneration"]},
    "n-gram": {"use_ngram_embedding": True, "ngram_embedding_n": 2},
    "dual chunk": {"dual_chunk_attention_config": {"chunk_size": 64}},
    "chunked attention": {"architectures": ["Llama4ForConditionalGeneration"]},
}


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("role", ["target model (--model-path)", "draft model (--spec-prefill-draft-model-path)"])
def test_other_attention_is_refused(model_config, name, role):
    odd, plain = model_config(), model_config("other")
    for setting, value in REFUSED[name].items():  # SGLang's ModelConfig of such a model wants all of its real settings
        setattr(odd.hf_config, setting, value)
    odd.use_ngram_embedding = getattr(odd.hf_config, "use_ngram_embedding", False)
    odd.is_local_attention_model = odd.hf_config.architectures == ["Llama4ForConditionalGeneration"]
    with pytest.raises(ConfigError, match=name) as error:
        _check(*((odd, plain) if role.startswith("target") else (plain, odd)))
    assert f"--spec-prefill cannot serve this {role}: " in str(error.value)


def test_a_key_of_latent_attention_is_its_latent(model_config):
    latent = model_config("latent", **MLA, architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2")
    assert models.key_dim(latent) == 32
    plain = model_config()
    assert models.key_dim(plain) == plain.head_dim


def test_prediction_heads_do_not_size_the_draft(model_config, tmp_path, pair_of):
    """SGLang gives a draft worker as many layers as its configuration has prediction heads."""
    from sglang.srt.model_executor.model_runner_components.layer_setup import resolve_layer_indices
    from sglang.srt.server_args import ServerArgs

    from specprefill_sgl.config import SpecPrefillConfig

    target = model_config("with_heads", num_nextn_predict_layers=1)
    config = SpecPrefillConfig(draft_model_path=str(tmp_path / "with_heads"))
    draft = compat.draft_model_config(config, ServerArgs(model_path="m", device="cpu", dtype="float32"), target=target)
    layers = [resolve_layer_indices(model=None, model_config=one, is_draft_worker=True) for one in (draft, target)]
    assert [one.num_effective_layers for one in layers] == [draft.num_hidden_layers, 1]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("qwen3_5", "recurrent states are handed over"),
        ("gpt_oss", "the end of a sliding window is handed over"),
        ("dsa", "a sparse index is handed over"),
    ],
)
@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_what_is_handed_over_by_the_prompts_length_is_refused_beside_disaggregation(model_config, model_of, name, why, mode):
    from sglang.srt.configs.model_config import ModelConfig

    model = model_config(**DSA) if name == "dsa" else ModelConfig(model_path=str(model_of(name)))
    compat.check_handover(SimpleNamespace(disaggregation_mode="null"), model)
    with pytest.raises(ConfigError, match=f"--disaggregation-mode {mode} cannot serve this target model .*: {why}"):
        compat.check_handover(SimpleNamespace(disaggregation_mode=mode), model)


def test_ordinary_attention_is_handed_over(model_config, model_of):
    from sglang.srt.configs.model_config import ModelConfig

    for model in (model_config(), ModelConfig(model_path=str(model_of("deepseek_v3")))):
        compat.check_handover(SimpleNamespace(disaggregation_mode="prefill"), model)
