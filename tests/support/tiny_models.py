"""Tiny random model pairs of five families, with a real tokenizer, in Hugging Face format.

Weights are drawn wide, so that attention is peaked and greedy tokens do not hang on float noise.
"""

import functools
import random
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch

VOCABULARY = 512
EOS = 1
_SPECIAL = ["<s>", "</s>", "<pad>"]
_COMMON = {"vocab_size": VOCABULARY, "max_position_embeddings": 8192, "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 2}
_CAPS = {
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 16384,  # longer than any test's prompt: exactness is about the cap
    "query_pre_attn_scalar": 8,
    "hidden_act": "gelu_pytorch_tanh",  # real Gemma 2 checkpoints carry it, and SGLang reads it
}


def _shape(hidden: int, heads: int, kv_heads: int, head_dim: int, layers: int = 2) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


# family -> (transformers' name, target's shape, draft's shape, other settings); drafts have other heads and head sizes
FAMILIES: dict[str, tuple[str, dict, dict, dict]] = {
    "llama": ("Llama", _shape(64, 4, 2, 16, layers=3), _shape(48, 6, 2, 32), {}),
    "qwen2": ("Qwen2", _shape(64, 4, 2, 16), _shape(96, 2, 1, 48), {}),
    "qwen3": ("Qwen3", _shape(64, 4, 2, 32), _shape(48, 2, 1, 64), {}),
    "mistral": ("Mistral", _shape(64, 4, 2, 16), _shape(96, 6, 3, 32), {"sliding_window": None}),
    "gemma2": ("Gemma2", _shape(64, 4, 2, 16), _shape(48, 2, 1, 32), _CAPS),
}


def save_pair(family: str, folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write a target and a draft with tokenizers; returns their directories."""
    _, target, draft, _ = FAMILIES[family]
    return _save(family, target, folder / "target", seed * 2), _save(family, draft, folder / "draft", seed * 2 + 1)


def save_deep(family: str, folder: Path, layers: int, seed: int = 0) -> Path:
    """Write a target with so many layers; returns its directory."""
    return _save(family, {**FAMILIES[family][1], "num_hidden_layers": layers}, folder, seed)


def _save(family: str, shape: dict, folder: Path, seed: int) -> Path:
    import transformers

    name, _, _, other = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**_COMMON, **shape, **other, initializer_range=0.2)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float()
    _spread(model)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def _spread(model: torch.nn.Module) -> None:
    """Give biases and norms values that matter: an implementation that drops them must fail."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif "q_norm" in name or "k_norm" in name:
                parameter.uniform_(1.3, 2.2)
            elif model.config.model_type == "gemma2" and "post_" in name:
                parameter.fill_(8.0)  # or its scaled, tied embedding outweighs the layers and one token is repeated


@functools.cache
def tokenizer():
    """Byte-level BPE of 512 tokens trained on Python's own sources."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    stdlib = Path(sysconfig.get_paths()["stdlib"])
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train([str(stdlib / file) for file in ("argparse.py", "ast.py", "calendar.py", "datetime.py", "pydoc.py")], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    return fast


def prompt_ids(length: int, seed: int) -> list[int]:
    """Random ordinary tokens; the same for the same arguments."""
    draw: Callable[[], int] = functools.partial(random.Random(seed).randrange, len(_SPECIAL), VOCABULARY)
    return [draw() for _ in range(length)]
