"""Mixtures of experts with ordinary attention."""

from tests.support.families.family import SHAPE, Family

_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

FAMILIES = {
    "qwen3_moe": Family("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**SHAPE, **_EXPERTS, "norm_topk_prob": True}),
}
