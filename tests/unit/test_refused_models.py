"""Models whose attention is not understood are refused by role, on SGLang's own ModelConfig."""

import json
import shutil

import pytest

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError


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


DEEPSEEK = {
    "model_type": "deepseek_v2",
    "architectures": ["DeepseekV2ForCausalLM"],
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 6,
}


def test_ordinary_attention_is_accepted(model_config):
    compat.check_models(model_config("target"), model_config("draft"))


def test_latent_attention_is_accepted_in_the_target_only(model_config):
    latent, plain = model_config("latent", **DEEPSEEK), model_config()
    compat.check_models(latent, plain)
    with pytest.raises(ConfigError, match="--spec-prefill-draft-model-path must be a model with ordinary attention"):
        compat.check_models(plain, latent)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architectures": ["MiniMaxM3SparseForCausalLM"]}, "sparse or chunked attention"),
        ({"is_hybrid_swa": True, "sliding_window": 64, "hybrid_layer_pattern": [0, 1]}, "sliding-window KV pool"),
        ({"use_ngram_embedding": True, "ngram_embedding_n": 2}, "n-gram embeddings"),
    ],
)
@pytest.mark.parametrize("role", ["target model", "draft model"])
def test_other_attention_is_refused(model_config, changes, why, role):
    odd, plain = model_config("odd", **changes), model_config()
    with pytest.raises(ConfigError, match=why) as error:
        compat.check_models(*((odd, plain) if role == "target model" else (plain, odd)))
    assert role in str(error.value)
