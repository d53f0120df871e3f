"""Model pairs that need no download: a small one with random weights, and one of real size whose weights are made up."""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 131_072,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


class Pair(NamedTuple):
    """Settings of two Llamas.

    Attributes
    ----------
    target, draft : dict
        As `config.json` has them.
    dtype : str
        What servers compute in.
    length : int
        Tokens of a prompt.
    gib : int
        GPU memory that serving it takes.
    """

    target: dict[str, Any]
    draft: dict[str, Any]
    dtype: str
    length: int
    gib: int = 0


def _shape(
    layers: int, hidden: int, heads: int, key_heads: int, dim: int, inner: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": key_heads}
    return {**_LLAMA, **sizes, "head_dim": dim, "intermediate_size": inner, "vocab_size": vocabulary, **more}


# with head sizes that all attention backends have; large weights, so that answers depend on what is kept
SMALL_ON_GPU = Pair(_shape(4, 512, 8, 2, 128, 1024, 4096), _shape(2, 256, 4, 2, 64, 512, 4096), "bfloat16", 3000)
SMALL_ON_CPU = SMALL_ON_GPU._replace(dtype="float32", length=1500)
REAL_ON_GPU = Pair(
    _shape(32, 4096, 32, 8, 128, 14_336, 128_256, tie_word_embeddings=False),
    _shape(16, 2048, 32, 8, 64, 8192, 128_256, tie_word_embeddings=True),
    "bfloat16",
    16_384,
    gib=30,
)
# an eighth of a second a thousand tokens: enough for a ratio
REAL_ON_CPU = Pair(
    _shape(8, 768, 12, 4, 64, 3072, 4096, tie_word_embeddings=True),
    _shape(2, 192, 3, 3, 64, 768, 4096, tie_word_embeddings=True),
    "float32",
    2048,
)


def write(pair: Pair, folder: Path, *, weights: bool) -> tuple[Path, Path]:
    """Directories of target and draft, as Hugging Face lays them out; without weights for `--load-format dummy`."""
    for role, settings in (("target", pair.target), ("draft", pair.draft)):
        if weights:
            _save_weights(settings, folder / role)
        (folder / role).mkdir(parents=True, exist_ok=True)
        (folder / role / "config.json").write_text(json.dumps({**settings, "torch_dtype": pair.dtype}))
        _tokenizer(settings["vocab_size"]).save_pretrained(folder / role)
    return folder / "target", folder / "draft"


def prompt(pair: Pair, seed: object, length: int | None = None) -> list[int]:
    """Random ids that both models have."""
    draw, most = random.Random(str(seed)), min(pair.target["vocab_size"], 4096)
    return [draw.randrange(2, most) for _ in range(length or pair.length)]


def _save_weights(settings: dict[str, Any], folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(settings["num_hidden_layers"])
    config = AutoConfig.for_model(**settings, initializer_range=0.1)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def _tokenizer(vocabulary: int) -> Any:
    """One word for each id that prompts have."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(min(vocabulary, 4096))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w0", eos_token="w1", unk_token="w0")
