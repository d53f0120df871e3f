"""A long document with facts hidden in it, and questions whose answers are known."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from benchmarks import text
from benchmarks.quality import forms

WORDS = ("amber", "cedar", "harbor", "lantern", "winter")


class Document(NamedTuple):
    """Prose with one statement per word, and a question with its answer for each."""

    prose: str
    questions: list[tuple[str, str]]


def document(count_tokens: Callable[[str], int], tokens: int) -> Document:
    """Held-out prose of about `tokens` tokens, the statements spread evenly over it."""
    facts = forms.pass_keys(Random("demo"), list(WORDS), len(WORDS))
    sentences, taken = [], 0
    for sentence in text.sentences("moby_dick", held_out=True):
        if taken >= tokens:
            break
        sentences.append(sentence)
        taken += count_tokens(" " + sentence)
    for at, statement in reversed(list(enumerate(facts.statements))):
        sentences.insert((2 * at + 1) * len(sentences) // (2 * len(facts.statements)), statement)
    return Document(" ".join(sentences), facts.questions)
