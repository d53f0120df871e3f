"""Hybrids of state space layers (Mamba2) or Kimi delta attention and full attention."""

from tests.support.families.family import SHAPE, Family

_FLOAT32_STATES = {"SGLANG_MAMBA_CONV_DTYPE": "float32"}  # SGLang keeps convolution states in bfloat16 unless told otherwise
_NEMOTRON = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "layers_block_type": ["mamba", "mlp", "attention", "mamba", "mlp", "attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "ssm_state_size": 32,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "chunk_size": 64,
}
_MAMBA = {  # as Falcon-H1 and Granite name it
    "mamba_d_head": 16,
    "mamba_n_heads": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 32,
    "mamba_chunk_size": 64,
}
_FALCON_MULTIPLIERS = {  # none is 1: an implementation that drops one must fail
    "embedding_multiplier": 1.5,
    "lm_head_multiplier": 0.5,
    "mlp_multipliers": [0.7, 1.3],
    "key_multiplier": 0.8,
    "attention_in_multiplier": 1.2,
    "attention_out_multiplier": 0.9,
    "ssm_in_multiplier": 1.1,
    "ssm_out_multiplier": 0.8,
    "ssm_multipliers": [0.9, 1.2, 0.8, 1.1, 0.7],
}
_GRANITE = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 64,
    "shared_intermediate_size": 128,
    "position_embedding_type": "nope",
    "embedding_multiplier": 1.5,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.8,
    "attention_multiplier": 0.2,
}
_KIMI_LAYERS = {  # counted from one
    "kda_layers": [1, 2, 4],
    "full_attn_layers": [3],
    "head_dim": 32,
    "num_heads": 4,
    "short_conv_kernel_size": 4,
}
_KIMI = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "mlp_layer_types": ["sparse"] * 4,  # transformers names a dense layer's weights as an expert layer's when it saves them
    "linear_attn_config": _KIMI_LAYERS,
}

FAMILIES: dict[str, Family] = {
    "nemotron_h": Family(
        "NemotronHForCausalLM",
        "NemotronHConfig",
        _NEMOTRON,
        written={
            "hybrid_override_pattern": "M-*M-*",
            "layers_block_type": _NEMOTRON["layers_block_type"],
            "mamba_n_groups": 2,
            "time_step_min": 0.0,  # transformers' prefill has no shorter time step; SGLang's, and both decodes, know no limit
        },
        env=_FLOAT32_STATES,
    ),
    "falcon_h1": Family(
        "FalconH1ForCausalLM",
        "FalconH1Config",
        {**SHAPE, **_MAMBA, "mamba_d_ssm": 128, **_FALCON_MULTIPLIERS},
        env=_FLOAT32_STATES,
    ),
    "granite_hybrid": Family(
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        {**SHAPE, **_MAMBA, **_GRANITE, "head_dim": 16},
        env=_FLOAT32_STATES,
    ),
    "kimi_linear": Family(
        "KimiLinearForCausalLM",
        "KimiLinearConfig",
        _KIMI,
        env=_FLOAT32_STATES,
    ),
}
