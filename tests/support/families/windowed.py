"""Sliding windows in some layers, with pools of their own unless said otherwise."""

import torch

from tests.support.families.family import SHAPE, Family

# SGLang refuses gpt-oss on `torch_native` by name; on a GPU the tests' own backend, triton, knows sinks
_KNOWS_SINKS = () if torch.cuda.is_available() else ("--attention-backend", "intel_amx")
_LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

FAMILIES = {
    "mellum": Family("MellumForCausalLM", "MellumConfig", {**SHAPE, **_EXPERTS, "sliding_window": 64, "layer_types": _LAYERS}),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        "GptOssConfig",
        {**SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128},
        options=(*_KNOWS_SINKS, "--moe-runner-backend", "triton"),
    ),  # sinks
    "gemma3": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**SHAPE, "sliding_window": 64, "query_pre_attn_scalar": 32, "layer_types": _LAYERS},
    ),  # one pool: SGLang keeps all of Gemma 2 and 3
    "mimo_v2_flash": Family(
        "MiMoV2FlashForCausalLM",
        "MiMoV2FlashConfig",
        {
            **SHAPE,
            "num_key_value_heads": 1,
            "v_head_dim": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "sliding_window": 64,
            "layer_types": _LAYERS,
        },
        {
            "hybrid_layer_pattern": [1, 1, 0, 0],
            "moe_layer_freq": [0, 1, 1, 1],
            "sliding_window_size": 63,  # SGLang counts the positions before a query, transformers the query too
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 32,
            "swa_v_head_dim": 16,
            "add_swa_attention_sink_bias": True,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "layernorm_epsilon": 1e-5,
            "rope_theta": 5_000_000.0,
            "swa_rope_theta": 10_000.0,
            "partial_rotary_factor": 0.334,
        },
        options=(*_KNOWS_SINKS, "--json-model-override-args", '{"rope_scaling": null}'),
    ),  # sinks in windowed layers only, values smaller than keys, and pools of other head counts
    "gemma4": Family(
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        {
            **SHAPE,
            "global_head_dim": 32,
            "sliding_window": 64,
            "layer_types": _LAYERS,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 512,
            "num_kv_shared_layers": 1,
        },
        {"swa_num_key_value_heads": 2, "swa_head_dim": 32, "swa_v_head_dim": 32, "v_head_dim": 32},
        options=_KNOWS_SINKS,
    ),  # one head size only: SGLang reads the sizes of both kinds of layers from the image model's configuration alone
}
