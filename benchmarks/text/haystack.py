"""Filler for prompts: prose of a given number of tokens, with statements hidden in it."""

import itertools
from collections.abc import Callable, Iterable
from random import Random

from benchmarks import text


def prose(random: Random, budget: int, count_tokens: Callable[[str], int], *, held_out: bool = True) -> list[str]:
    """Consecutive sentences of a random book from a random place on; a book's end is followed by its beginning."""
    source = text.sentences(random.choice(text.BOOKS), held_out=held_out)
    at = random.randrange(len(source))
    return filled(itertools.islice(itertools.cycle(source), at, None), budget, count_tokens)


def filled(sentences: Iterable[str], budget: int, count_tokens: Callable[[str], int]) -> list[str]:
    """The first sentences, together at most `budget` tokens and near it: the last one may be cut."""
    pieces: list[str] = []
    for sentence in sentences:
        if budget <= 0:
            break
        taken = count_tokens(" " + sentence)
        if taken > budget:
            return [*pieces, _cut(sentence, budget, count_tokens)]
        pieces.append(sentence)
        budget -= taken
    return pieces


def _cut(sentence: str, budget: int, count_tokens: Callable[[str], int]) -> str:
    """The sentence's first words; half as many as long as that is too much, as tables of numbers can be."""
    words = sentence.split(" ")[: max(1, budget // 3)]
    while len(words) > 1 and count_tokens(" " + " ".join(words)) > budget:
        words = words[: len(words) // 2]
    return " ".join(words).rstrip(",;:") + "."


def hidden(prose: list[str], statements: list[str], places: list[float]) -> list[str]:
    """The sentences with each statement at the sentence end nearest to its place (0 to 1, ascending)."""
    ends = list(itertools.accumulate((len(one) for one in prose), initial=0))
    gaps = [min(range(len(ends)), key=lambda at, place=place: abs(ends[at] - place * ends[-1])) for place in places]
    result = list(prose)
    for gap, statement in reversed(list(zip(gaps, statements, strict=True))):
        result.insert(gap, statement)
    return result
