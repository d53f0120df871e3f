"""Training sequences: prose or code with statements hidden in it, then questions with their answers.

Each sequence is a list of token ids and a mask of the answers' tokens, all of one length.
"""

from collections.abc import Callable, Sequence
from random import Random

import torch

from benchmarks import text
from benchmarks.pair import vocabulary
from benchmarks.quality import forms

_MIXTURES = {
    "even": {"pass_keys": 42, "many_queries": 22, "many_values": 5, "variables": 12, "people": 14, "votes": 8},
    "lists": {"pass_keys": 24, "many_queries": 45, "many_values": 8, "variables": 9, "people": 6, "votes": 8},
}
_BETWEEN = (" ",) * 6 + ("\n",) * 2 + ("\n\n",) * 2
_SYLLABLES = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ka",
    "le",
    "mi",
    "no",
    "pu",
    "ra",
    "se",
    "ti",
    "vo",
    "wy",
    "zan",
    "mer",
    "lis",
    "ton",
)


class Sequences:
    """Draws sequences; the same random state gives the same sequence."""

    def __init__(self, encode: Callable[[str], list[int]]):
        self._encode = encode
        self._words = text.lower_case_words(held_out=False)
        self._short = [word for word in self._words if len(encode(" " + word)) == 1]
        prose = [list(text.sentences(name, held_out=False)) for name in text.BOOKS]
        code = [line for source in vocabulary.python_sources()[::6] for line in source.split("\n\n") if line.strip()]
        self._fillers = [[encode(" " + piece) for piece in book] for book in prose]
        self._fillers.append([encode("\n\n" + piece)[:200] for piece in code])

    def batch(self, random: Random, size: int, length: int, mixture: str = "even") -> tuple[torch.Tensor, torch.Tensor]:
        """Ids `[size, length]` int64 and the mask of answer tokens, of the same shape; `mixture` weighs the questions."""
        pairs = [self._sequence(random, length, _MIXTURES[mixture]) for _ in range(size)]
        return torch.tensor([ids for ids, _ in pairs]), torch.tensor([mask for _, mask in pairs])

    def _sequence(self, random: Random, length: int, kinds: dict[str, int]) -> tuple[list[int], list[bool]]:
        statements, questions = self._facts(random, int(length * random.choice((0.1, 0.2, 0.4, 0.6, 0.8))), kinds)
        taken = sum(len(ids) for _, ids in statements) + sum(len(ask) + len(answer) for ask, answer in questions)
        filler = self._filler(random, length - taken)
        gaps = random.random() < 0.5  # prose between the questions, or questions in a row
        split = random.randrange(len(filler) // 2, len(filler)) if gaps and len(filler) > 1 else len(filler)
        pieces = _merged(filler[:split], [at for at, _ in statements], [(ids, False) for _, ids in statements])
        asks = [[(ask, False), (answer, True)] for ask, answer in questions]
        rest = [(piece, False) for piece in filler[split:]]
        for at in sorted(random.choices(range(len(rest) + 1), k=len(asks)), reverse=True):
            rest[at:at] = asks.pop()
        pairs = [(token, masked) for piece, masked in pieces + rest for token in piece][:length]
        return [token for token, _ in pairs], [masked for _, masked in pairs]

    def _facts(self, random: Random, budget: int, kinds: dict[str, int]) -> tuple[list, list]:
        """Statements with the place (0 to 1) each has in the text, and questions with answers, of about `budget` tokens."""
        used: set[str] = set()
        statements, questions, taken = [], [], 0
        while taken < budget or not questions:
            drawn = self._draw(random, used, max(16, budget - taken), kinds)
            places = sorted(random.random() for _ in drawn.statements)
            blank = random.choice(_BETWEEN)
            new = [(at, self._encode(blank + one)) for at, one in zip(places, drawn.statements, strict=True)]
            asked = [
                (self._encode(random.choice(_BETWEEN) + ask), self._encode(answer + ".")) for ask, answer in drawn.questions
            ]
            taken += sum(len(ids) for _, ids in new) + sum(len(ask) + len(answer) for ask, answer in asked)
            statements += new
            questions += asked
        random.shuffle(questions)
        return sorted(statements, key=lambda pair: pair[0]), questions

    def _draw(self, random: Random, used: set[str], budget: int, kinds: dict[str, int]) -> forms.Facts:
        kind = random.choices(list(kinds), kinds.values())[0]
        most = max(1, budget // 28)  # of facts that fit, questions included
        if kind == "many_queries" and budget > 120:
            asked = random.randint(2, 4)
            count = random.randint(asked, max(asked, min(most, 8)))
            words = self._short if random.random() < 0.7 else self._words  # of one token each, as the task asks for
            return forms.many_queries(random, self._new(random, used, count, words), asked)
        if kind == "many_values" and budget > 120:
            return forms.many_values(random, self._new(random, used, 1)[0], random.randint(2, 4))
        if kind == "variables":
            return forms.variables(random, self._new(random, used, random.randint(1, 3)))
        if kind == "people":
            count = random.randint(1, min(most, 40))
            if "people" not in used:
                used.add("people")
                return forms.people(random, self._new(random, used, count), random.randint(1, count))
        if kind == "votes" and budget > 200 and "votes" not in used:
            used.add("votes")
            return forms.votes(random, self._new(random, used, 3), random.randint(9, 21))
        count = random.randint(1, min(most, 30))
        return forms.pass_keys(random, self._new(random, used, count), random.randint(1, count))

    def _new(self, random: Random, used: set[str], count: int, words: Sequence[str] = ()) -> list[str]:
        """Words not used before in this sequence; one in ten is made up."""
        found: list[str] = []
        while len(found) < count:
            made = "".join(random.choices(_SYLLABLES, k=random.randint(2, 3)))
            word = made if random.random() < 0.1 else random.choice(words or self._words)
            if word not in used:
                used.add(word)
                found.append(word)
        return found

    def _filler(self, random: Random, tokens: int) -> list[list[int]]:
        """Consecutive pieces of one source, or one sentence again and again, of exactly `tokens` tokens."""
        source = random.choices(self._fillers, (4, 5, 2))[0]
        at, same = random.randrange(len(source)), random.random() < 0.05
        pieces: list[list[int]] = []
        while tokens > 0:
            piece = source[at % len(source)][:tokens]
            pieces.append(piece)
            tokens -= len(piece)
            at += not same
        return pieces


def _merged(filler: list[list[int]], places: list[float], statements: list) -> list:
    """Filler with each statement before the filler piece its place (0 to 1) falls on."""
    pieces = [(piece, False) for piece in filler]
    for place, statement in sorted(zip(places, statements, strict=True), key=lambda pair: pair[0], reverse=True):
        pieces.insert(int(place * (len(filler) + 1)), statement)
    return pieces
