"""A wheel with a GGUF in it, written as llama.cpp stores a Llama, and metadata of a small byte-level tokenizer."""

import zipfile

import gguf
from tokenizers.pre_tokenizers import ByteLevel

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["th", "the", "Ġthe"]  # by the merges below
ALPHABET = sorted(ByteLevel.alphabet())
FIELDS = {
    "general.architecture": "llama",
    "general.organization": "Toys",
    "general.license": "apache-2.0",
    "llama.context_length": 128,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.tokens": SPECIAL + ALPHABET + WORDS,
    "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(ALPHABET) + len(WORDS)),
    "tokenizer.ggml.merges": ["t h", "th e", "Ġ the"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
}


def wheel_of(model, folder):
    """A wheel-like zip with the model as llama.cpp would store it, in float32."""
    config = model.config
    writer = gguf.GGUFWriter(folder / "toy.gguf", "llama")
    writer.add_string("general.organization", FIELDS["general.organization"])
    writer.add_license(FIELDS["general.license"])
    writer.add_context_length(FIELDS["llama.context_length"])
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model(FIELDS["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(FIELDS["tokenizer.ggml.pre"])
    writer.add_add_bos_token(FIELDS["tokenizer.ggml.add_bos_token"])
    writer.add_token_list(FIELDS["tokenizer.ggml.tokens"])
    writer.add_token_types(FIELDS["tokenizer.ggml.token_type"])
    writer.add_token_merges(FIELDS["tokenizer.ggml.merges"])
    writer.add_bos_token_id(FIELDS["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(FIELDS["tokenizer.ggml.eos_token_id"])
    writer.add_unk_token_id(FIELDS["tokenizer.ggml.unknown_token_id"])
    writer.add_pad_token_id(FIELDS["tokenizer.ggml.padding_token_id"])
    writer.add_chat_template(FIELDS["tokenizer.chat_template"])
    for name, tensor in _gguf_tensors(model).items():
        writer.add_tensor(name, tensor.detach().numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with zipfile.ZipFile(folder / "toy.whl", "w") as packed:
        packed.write(folder / "toy.gguf", "toy/toy.gguf")
        packed.writestr("toy/__init__.py", "")
    return folder / "toy.whl"


def _gguf_tensors(model):
    config = model.config
    found = {"token_embd.weight": model.model.embed_tokens.weight, "output_norm.weight": model.model.norm.weight}
    for at, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        parts = {
            "attn_norm": layer.input_layernorm.weight,
            "attn_q": _interleaved(attention.q_proj.weight, config.num_attention_heads),
            "attn_k": _interleaved(attention.k_proj.weight, config.num_key_value_heads),
            "attn_v": attention.v_proj.weight,
            "attn_output": attention.o_proj.weight,
            "ffn_norm": layer.post_attention_layernorm.weight,
            "ffn_gate": mlp.gate_proj.weight,
            "ffn_up": mlp.up_proj.weight,
            "ffn_down": mlp.down_proj.weight,
        }
        found |= {f"blk.{at}.{part}.weight": tensor for part, tensor in parts.items()}
    return found


def _interleaved(weight, heads):
    """Row by row: the two rows that transformers turns together, `i` and `i + dim / 2` of a head, become neighbours."""
    dim = len(weight) // heads
    order = [head * dim + row for head in range(heads) for i in range(dim // 2) for row in (i, i + dim // 2)]
    return weight[order]
