"""Gated delta net hybrids: three linear layers, then one of full attention. Two value heads share a key head."""

from pathlib import Path

from tests.support.families.family import SHAPE, Family
from tests.support.tiny_models import VOCABULARY, tokenizer

_LINEAR = {
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
}
_INTERVAL = {"full_attention_interval": 4}  # transformers writes `layer_types` in its place
_EXACT = {"SGLANG_MAMBA_CONV_DTYPE": "float32"}  # SGLang keeps the convolution's state in bfloat16, whatever the model is
_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 16,
    "out_hidden_size": SHAPE["hidden_size"],
    "num_position_embeddings": 64,
}
_VISION_TOKENS = {  # beyond the vocabulary: text requests have none of them
    "image_token_id": VOCABULARY,
    "video_token_id": VOCABULARY + 1,
    "vision_start_token_id": VOCABULARY + 2,
    "vision_end_token_id": VOCABULARY + 3,
}


def _save_processor(folder: Path) -> None:
    """What a server reads of images before it serves any model that could see them."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    Qwen3VLProcessor(Qwen2VLImageProcessor(patch_size=16), tokenizer(), Qwen3VLVideoProcessor()).save_pretrained(folder)


FAMILIES = {
    "qwen3_next": Family(
        "Qwen3NextForCausalLM", "Qwen3NextConfig", {**SHAPE, **_LINEAR, **_EXPERTS}, written=_INTERVAL, env=_EXACT
    ),
    "qwen3_5": Family("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", {**SHAPE, **_LINEAR}, written=_INTERVAL, env=_EXACT),
    "qwen3_5_moe": Family(
        "Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextConfig", {**SHAPE, **_LINEAR, **_EXPERTS}, written=_INTERVAL, env=_EXACT
    ),
    "qwen3_5_vl": Family(  # the architecture of the published checkpoints
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5Config",
        {"text_config": {**SHAPE, **_LINEAR}, "vision_config": _VISION, **_VISION_TOKENS},
        written={"text_config": _INTERVAL},
        env=_EXACT,
        also=_save_processor,
    ),
}
