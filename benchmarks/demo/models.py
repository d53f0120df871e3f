"""A small target and draft of realistic shape with random weights: speed needs no trained ones."""

import shutil
import sysconfig
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import torch

VOCABULARY = 8192
CONTEXT = 16384
TARGET = {
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 4096,
}
DRAFT = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
}
_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def ensure(folder: Path) -> tuple[Path, Path]:
    """Directories of target and draft, built if they are not there; a half-built model is never left behind."""
    for name, shape, seed in (("target", TARGET, 0), ("draft", DRAFT, 1)):
        if not (folder / name).exists():
            print(f"building the {name} model in {folder / name}", flush=True)
            unfinished = folder / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            _tokenizer(folder).save_pretrained(unfinished)
            _model(shape, seed).save_pretrained(unfinished)
            unfinished.rename(folder / name)
    return folder / "target", folder / "draft"


def texts() -> Iterator[str]:
    """Text found on any machine with Python: the standard library's sources, then licences of installed packages."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")
    for distribution in sorted(distributions(), key=lambda d: d.name or ""):
        for file in sorted(distribution.files or (), key=str):
            if file.name.startswith("LICENSE") and file.locate().is_file():
                yield file.locate().read_text(encoding="utf-8", errors="replace")


def _model(shape: dict[str, int], seed: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1, pad_token_id=2, **shape
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).to(torch.bfloat16)


def _tokenizer(folder: Path):
    """Byte-level BPE, trained once and shared by both models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    saved = folder / "tokenizer.json"
    if not saved.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts(), trainer)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(saved))
    fast = PreTrainedTokenizerFast(tokenizer_file=str(saved), bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = _TEMPLATE
    return fast
