"""Mixtures of experts with ordinary attention."""

from tests.support.families.family import SHAPE, Family

_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_GLM = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "use_qk_norm": True,
    "attention_bias": True,
}

FAMILIES = {
    "qwen3_moe": Family("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**SHAPE, **_EXPERTS, "norm_topk_prob": True}),
    "glm4_moe": Family("Glm4MoeForCausalLM", "Glm4MoeConfig", {**SHAPE, **_GLM}),
    "minimax_m2": Family(
        "MiniMaxM2ForCausalLM",
        "MiniMaxM2Config",
        {**SHAPE, "num_local_experts": 8, "num_experts_per_tok": 2},
        written={"scoring_func": "sigmoid", "use_qk_norm": True},
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        "MixtralConfig",
        {**SHAPE, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),  # SGLang's Mixtral takes hidden_size / num_attention_heads for the head's size, whatever the configuration says
}
