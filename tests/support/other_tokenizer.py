"""A tiny draft with a tokenizer of its own, and what it must read: an independent reference of who overlaps whom."""

import functools
import sysconfig
from pathlib import Path

import torch

_SIZE = 400
_COMMON = {"max_position_embeddings": 8192, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


@functools.cache
def tokenizer():
    """BPE inside words, lower case, spaces belong to no token, unknown characters, a first token of its own."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.BPE(unk_token="<unk>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=_SIZE, special_tokens=["<s>", "<end>", "<unk>"], show_progress=False)
    model.train([str(Path(sysconfig.get_paths()["stdlib"]) / "calendar.py")], trainer)
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="<end>", unk_token="<unk>")


def save_draft(folder: Path, seed: int = 11) -> Path:
    """A Llama of two layers, weights drawn wide as in `tiny_models`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}
    config = LlamaConfig(vocab_size=_SIZE, **_COMMON, **shape, **heads, initializer_range=0.2)
    LlamaForCausalLM(config).float().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def text(words: int, seed: int) -> str:
    """Prose of the standard library's sources, with characters that neither tokenizer has whole."""
    source = (Path(sysconfig.get_paths()["stdlib"]) / "ast.py").read_text().split(" ")
    start = 97 * seed
    chosen = [*source[start : start + words]]
    chosen[words // 3 : words // 3] = ["naïve", "日本", "😀", "Größe"]
    return " ".join(chosen)


def overlaps(target_tokenizer, prompt: str) -> tuple[list[int], list[int], list[list[int]]]:
    """The target's ids of a text, the draft's, and for each of the target's the draft's tokens that share a character with it.

    A space that no draft token has belongs to the next one; what overlaps none takes the one after it.
    """
    target = target_tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    draft = tokenizer()(prompt, return_offsets_mapping=True)
    spans, before = [], 0
    for begin, end in draft["offset_mapping"]:
        spans.append((min(begin, before), end))
        before = end
    found = []
    for begin, end in target["offset_mapping"]:
        shared = [at for at, (first, past) in enumerate(spans) if max(first, begin) < min(past, end)]
        later = [at for at, (_, past) in enumerate(spans) if past > begin] or [len(spans) - 1]
        found.append(shared or later[:1])
    return target["input_ids"], draft["input_ids"], found


def over_target(votes: torch.Tensor, found: list[list[int]]) -> torch.Tensor:
    """Each target token's largest vote, [votes, prompt_tokens]."""
    return torch.stack([votes[:, among].amax(dim=1) for among in found], dim=1)
