"""Real English prose for training and for filler: the last tenth of each book is held out from training."""

import functools
import lzma
import re
from pathlib import Path

BOOKS = ("moby_dick", "state_of_the_union")
_HELD_OUT = 0.1
_SENTENCE_END = re.compile(r'(?<=[.!?]["\'])\s+|(?<=[.!?])\s+')


@functools.cache
def book(name: str, *, held_out: bool) -> str:
    """Text of a book's training part or of its held-out part, cut at the end of a paragraph."""
    text = lzma.decompress((Path(__file__).parent / f"{name}.txt.xz").read_bytes()).decode()
    cut = text.index("\n", int(len(text) * (1 - _HELD_OUT))) + 1
    return text[cut:] if held_out else text[:cut]


@functools.cache
def sentences(name: str, *, held_out: bool) -> tuple[str, ...]:
    """The sentences of a book in order, without the blanks between them."""
    return tuple(one for one in _SENTENCE_END.split(book(name, held_out=held_out)) if one)


@functools.cache
def lower_case_words(*, held_out: bool) -> tuple[str, ...]:
    """Every lower-case English word of three to twelve letters in the books; one in eight is held out from training."""
    found = {word for name in BOOKS for word in re.findall(r"\b[a-z]{3,12}\b", book(name, held_out=False))}
    ordered = sorted(found)
    return tuple(word for at, word in enumerate(ordered) if (at % 8 == 0) == held_out)
