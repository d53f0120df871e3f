"""GGUF tensors and metadata of a Llama as a Hugging Face model."""

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

_OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHERS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def metadata(reader: GGUFReader) -> dict:
    """All key-value pairs of the file."""
    return {key: field.contents() for key, field in reader.fields.items()}


def model(reader: GGUFReader) -> LlamaForCausalLM:
    """The model in bf16. Tensors and configuration must fit each other exactly, or torch's RuntimeError says what does not."""
    config = configuration(metadata(reader))
    with torch.device("meta"):
        empty = LlamaForCausalLM(config)
    tensors = _tensors(reader, config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    empty.load_state_dict(tensors, strict=True, assign=True)
    empty.tie_weights()
    return empty


def configuration(fields: dict) -> LlamaConfig:
    """Transformers' configuration of a `llama` file without an output matrix of its own."""
    if fields["general.architecture"] != "llama":
        raise ValueError(f"the file holds a {fields['general.architecture']}, and only a llama can be converted")
    return LlamaConfig(
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        head_dim=fields["llama.rope.dimension_count"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        max_position_embeddings=fields["llama.context_length"],
        vocab_size=fields["llama.vocab_size"],
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,  # there is no output.weight
        dtype="bfloat16",
    )


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection, [heads * dim, hidden], from GGUF's rotary order to transformers'.

    GGUF interleaves what a rotation turns together: rows 0 and 1, 2 and 3, ... of a head. Transformers turns rows `i` and
    `i + dim / 2`.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def _tensors(reader: GGUFReader, config: LlamaConfig) -> dict[str, torch.Tensor]:
    heads_of = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads_of:
            weight = unpermute(weight, heads_of[part])
        found[_name(tensor.name)] = torch.tensor(weight, dtype=torch.bfloat16)
    return found


def _name(name: str) -> str:
    """`blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    if name in _OTHERS:
        return _OTHERS[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_OF_A_LAYER[part]}.{kind}"
