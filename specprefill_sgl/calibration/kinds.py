"""Prompts with known answers, of five kinds: heads that find one kind's evidence need not find another's."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple


class Known(NamedTuple):
    """A prompt and where its answer is.

    Attributes
    ----------
    kind : str
    prompt : str
        Body, then the question.
    evidence : tuple of str
        Parts of the body that a reader needs, each in it once.
    """

    kind: str
    prompt: str
    evidence: tuple[str, ...]


Filler = Callable[[Random], str]  # a sentence that says nothing
MIN_SENTENCES = 50  # of a text, so that those of a prompt differ
_TRIES = 100


def _words(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


_NAMES = _words("Rosa Milan Ines Tomas Clara Anton Lea Viktor Nora Emil Greta Hugo Alma Oskar Ida Felix Vera Jonas Marta Pablo")
_PLACES = _words("Lisbon Oslo Turin Quito Riga Cairo Lima Bergen Perth Kyoto Ghent Tunis Delft Austin Bristol Porto")
_TRADES = _words("painter baker pilot teacher farmer lawyer nurse singer tailor sailor writer gardener")
_THINGS = _words("lamp bridge garden wagon violin kettle letter basket mirror harbour orchard candle saddle window")
_LIKE = _words("old quiet narrow bright wooden distant heavy yellow broken gentle empty famous")
_ANIMALS = _words("fox raven otter heron badger swan lynx crane bison falcon")
_DID = _words("stood beside,looked like,belonged to,was moved near,was painted after,was sold with,came before", ",")
_WHEN = _words("in the morning,after the rain,during the war,every winter,at noon,long ago,for many years", ",")


def plain(random: Random) -> str:
    """A sentence from built-in words."""
    one, other = random.sample(_THINGS, 2)
    how = [random.choice(_LIKE) for _ in range(2)]
    return f"The {how[0]} {one} {random.choice(_DID)} the {how[1]} {other} {random.choice(_WHEN)}."


def from_text(text: str) -> Filler:
    """Sentences of a text.

    Raises
    ------
    ValueError
        If there are too few to hide something among them.
    """
    found = [" ".join(part.split()) + "." for part in text.replace("!", ".").replace("?", ".").split(".")]
    sentences = [one for one in dict.fromkeys(found) if 40 <= len(one) <= 300]
    if len(sentences) < MIN_SENTENCES:
        raise ValueError(f"the text has {len(sentences)} sentences of 40 to 300 characters, not {MIN_SENTENCES}")
    return lambda random: random.choice(sentences)


def prompts(kind: str, count: int, words: int, filler: Filler) -> list[Known]:
    """`count` prompts of a kind, of about so many words; always the same."""
    return [_KINDS[kind](Random(f"{kind} {number}"), words, filler) for number in range(count)]


def _hidden(random: Random, statements: list[str], words: int, filler: Filler) -> str:
    body: list[str] = []
    while sum(len(sentence.split()) for sentence in body) < words:
        body.append(filler(random))
    for statement in statements:
        body.insert(random.randrange(len(body) + 1), statement)
    return " ".join(body)


def _key(random: Random, asked: int) -> tuple[list[str], list[str]]:
    owners = [f"the {animal}" for animal in random.sample(_ANIMALS, 8)]
    return owners[:asked], [f"The pass key of {owner} is {random.randrange(10_000, 99_999)}." for owner in owners]


def _one_key(random: Random, words: int, filler: Filler) -> Known:
    (owner,), statements = _key(random, 1)
    return Known(
        "one key", f"{_hidden(random, statements, words, filler)}\n\nWhat is the pass key of {owner}?", (statements[0],)
    )


def _three_keys(random: Random, words: int, filler: Filler) -> Known:
    owners, statements = _key(random, 3)
    question = f"What are the pass keys of {owners[0]}, of {owners[1]} and of {owners[2]}?"
    return Known("three keys", f"{_hidden(random, statements, words, filler)}\n\n{question}", tuple(statements[:3]))


def _two_hops(random: Random, words: int, filler: Filler) -> Known:
    names = random.sample([first + second for first in "BDGKLMPRTV" for second in "aeiou"], 8)
    chains = []
    for first, second in zip(names[::2], names[1::2], strict=True):
        chains += [f"The value of {first} is {random.randrange(10_000, 99_999)}.", f"The value of {second} is that of {first}."]
    question = f"What number is the value of {names[1]}?"
    return Known("two hops", f"{_hidden(random, chains, words, filler)}\n\n{question}", tuple(chains[:2]))


def _quotation(random: Random, words: int, filler: Filler) -> Known:
    for _ in range(_TRIES):
        sentence = filler(random).split()
        body = _hidden(random, [" ".join(sentence)], words, filler)
        half = len(sentence) // 2
        rest = " ".join(sentence[half:])
        if half >= 4 and body.count(rest) == 1:
            beginning = " ".join(sentence[:half])
            return Known("quotation", f'{body}\n\nHow does the sentence go on that begins "{beginning}"?', (rest,))
    raise ValueError("no sentence is unlike all others")


def _fact(random: Random, words: int, filler: Filler) -> Known:
    names = random.sample(_NAMES, 6)
    facts = [f"{name} lives in {random.choice(_PLACES)} and works as a {random.choice(_TRADES)}." for name in names]
    question = random.choice([f"Where does {names[0]} live?", f"What is the trade of {names[0]}?"])
    return Known("facts", f"{_hidden(random, facts, words, filler)}\n\n{question}", (facts[0],))


_KINDS: dict[str, Callable[[Random, int, Filler], Known]] = {
    "one key": _one_key,
    "three keys": _three_keys,
    "two hops": _two_hops,
    "quotation": _quotation,
    "facts": _fact,
}
KINDS = tuple(_KINDS)
