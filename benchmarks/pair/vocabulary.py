"""The pair's tokenizer: byte-level BPE over prose and Python source; every number of up to three digits is one token."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks import text

SIZE = 12288
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_NUMBER_WEIGHT = 20_000  # occurrences that make every number worth its own token
_CHAT = "{{ messages | map(attribute='content') | join('\\n') }}"  # the pair continues text: the last message is continued


def train(folder: Path) -> None:
    """Write tokenizer.json and its configuration to a folder."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = _CHAT
    fast.save_pretrained(folder)


def python_sources() -> list[str]:
    """Source files of Python's standard library: code and technical English found on any machine with Python."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def _texts() -> Iterator[str]:
    for name in text.BOOKS:
        yield text.book(name, held_out=False)
    yield from python_sources()[::6]
    for width in (1, 2, 3):
        numbers = [f"{number:0{width}d}" for number in range(10**width)]
        for blank in ("", " "):
            block = "\n".join(blank + number for number in numbers) + "\n"
            yield from [block] * (_NUMBER_WEIGHT // 10)
