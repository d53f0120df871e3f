"""What `check` says a pool takes is what SGLang's pools of the same shapes take."""

import json

import pytest
import torch

from specprefill_sgl.cli import memory

# as published ones: three linear layers, then one of full attention; two of eight here attend
HYBRID = {
    "model_type": "qwen3_next",
    "architectures": ["Qwen3NextForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "full_attention_interval": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_conv_kernel_dim": 4,
    "vocab_size": 512,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}
SLOTS, STATES = 15, 7  # SGLang adds one of each for padding


@pytest.fixture
def config_of(tmp_path, model_of, pair_of):
    """ModelConfig of a tiny model as a draft has it, in bfloat16."""
    from sglang.srt.configs.model_config import ModelConfig

    def make(name):
        if name != "hybrid":
            folder = pair_of(name)[1] if name in ("llama", "gemma2") else model_of(name)
        else:
            folder = tmp_path
            (folder / "config.json").write_text(json.dumps(HYBRID))
        return ModelConfig(model_path=str(folder), dtype="bfloat16", disable_hybrid_swa_memory=True)

    return make


def _bytes(tensors):
    return sum(one.numel() * one.element_size() for one in tensors)


@pytest.fixture
def shared():
    """What a pool's constructor wants of every pool."""
    return {"page_size": 1, "dtype": torch.bfloat16, "device": "cpu", "enable_memory_saver": False}


@pytest.mark.parametrize(("name", "layers"), [("llama", 2), ("qwen3_moe", 4), ("mellum", 4), ("gemma2", 2), ("hybrid", 2)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_keys_and_values(config_of, shared, name, layers, ranks):
    """Windowed layers share the pool; of a hybrid's, those that attend are in it."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    model = config_of(name)
    text = model.hf_text_config
    heads = max(1, text.num_key_value_heads // ranks)
    pool = MHATokenToKVPool(SLOTS, head_num=heads, head_dim=text.head_dim, layer_num=layers, **shared)
    assert (SLOTS + 1) * memory.kv_bytes(model, ranks) == _bytes([*pool.k_buffer, *pool.v_buffer])


@pytest.mark.parametrize("name", ["mimo_v2_flash", "mellum"])
def test_windowed_layers_with_a_pool_of_their_own(model_of, shared, name):
    """MiMo's windowed layers have two key heads of 32 and values of 16, the others one key head."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    model = ModelConfig(model_path=str(model_of(name)), dtype="bfloat16")
    v_dim = 16 if name == "mimo_v2_flash" else 32
    full, windowed = (
        MHATokenToKVPool(SLOTS, head_num=heads, head_dim=32, v_head_dim=v_dim, layer_num=2, **shared)
        for heads in ((1, 2) if name == "mimo_v2_flash" else (2, 2))
    )
    sizes = [_bytes([*pool.k_buffer, *pool.v_buffer]) for pool in (full, windowed)]
    assert (SLOTS + 1) * memory.windowed_kv_bytes(model, 1) == sizes[1]
    assert (SLOTS + 1) * memory.kv_bytes(model, 1) == sum(sizes)


@pytest.mark.parametrize("ranks", [1, 2])
def test_latent_keys(config_of, shared, ranks):
    from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

    pool = MLATokenToKVPool(SLOTS, kv_lora_rank=32, qk_rope_head_dim=16, layer_num=3, **shared)
    assert (SLOTS + 1) * memory.kv_bytes(config_of("deepseek_v3"), ranks) == _bytes(pool.kv_buffer)


def test_recurrent_states(config_of):
    from sglang.srt.mem_cache.memory_pool import MambaPool
    from sglang.srt.runtime_context import get_parallel

    model = config_of("hybrid")
    widths = {"tp_size": 1, "attn_tp_size": 1, "attn_dp_size": 1, "attn_cp_size": 1}
    with get_parallel().override(**widths, enable_cp_tp_group_sharing=False):
        params = model.hf_config.mamba2_cache_params
    pool = MambaPool(
        size=STATES,
        spec_state_size=1,
        cache_params=params,
        mamba_layer_ids=params.layers,
        device="cpu",
        enable_memory_saver=False,
    )
    states = pool.mamba_cache
    assert (STATES + 1) * memory.state_bytes(model, 1) == _bytes([*states.conv, states.temporal])


def test_ranks_share_a_state(config_of):
    # of 6 linear layers: 3 inputs of each of 2 * 2 * 16 + 4 * 24 channels in bfloat16, 4 matrices of 16 x 24 in float32
    whole = 6 * (3 * (2 * 2 * 16 + 4 * 24) * 2 + 4 * 16 * 24 * 4)
    assert memory.state_bytes(config_of("hybrid"), 1) == whole
    assert memory.state_bytes(config_of("hybrid"), 2) == whole // 2


@pytest.mark.parametrize(("name", "window"), [("mellum", 64), ("gemma2", 16384), ("llama", 0), ("hybrid", 0)])
def test_windows(config_of, name, window):
    assert memory.window(config_of(name)) == window


@pytest.mark.parametrize("name", ["llama", "mellum", "deepseek_v3"])
def test_models_without_recurrent_layers_have_no_states(config_of, name):
    assert memory.state_bytes(config_of(name), 1) == 0
