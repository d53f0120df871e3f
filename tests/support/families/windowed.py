"""Sliding windows in some layers, with pools of their own."""

from tests.support.families.family import SHAPE, Family

_LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

FAMILIES = {
    "mellum": Family("MellumForCausalLM", "MellumConfig", {**SHAPE, **_EXPERTS, "sliding_window": 64, "layer_types": _LAYERS}),
}
