"""Latent attention (MLA): keys and values are one vector per token, shared by all heads."""

from tests.support.families.family import Family

# published DeepSeek and Kimi models have it, and SGLang scales their logits by its mscale
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "rope_theta": 10000.0,
}
_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
}

FAMILIES: dict[str, Family] = {
    "deepseek_v2": Family(
        "DeepseekV2ForCausalLM",
        "DeepseekV2Config",
        {**_SHAPE, "rope_parameters": _YARN, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "topk_method": "greedy"},
        {"moe_layer_freq": 1, "scoring_func": "softmax"},
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {**_SHAPE, "rope_parameters": _YARN, "q_lora_rank": 48, "n_group": 2, "topk_group": 1},
        {"moe_layer_freq": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    ),  # Kimi K2 too
    "glm4_moe_lite": Family(
        "Glm4MoeLiteForCausalLM",
        "Glm4MoeLiteConfig",
        {**_SHAPE, "q_lora_rank": 48},
        {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    ),  # GLM-4.7-Flash
}
