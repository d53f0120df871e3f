"""The sentences that tasks and training share: statements hidden in prose, and questions with one true answer.

Every function returns `Facts`: statements in the order in which the text must state them, and questions with their answers. A
prompt ends with a question, without a blank; the answer begins with one.
"""

from random import Random
from typing import NamedTuple

NAMES = """
Ada Amos Anna Asa Boris Clara Cyrus Daniel Dora Edith Edwin Elias Emma Ezra Felix Flora Frank Grace Greta
Harold Hazel Helen Henry Hugo Ida Igor Irene Isaac Ivan Jacob James Jane Jonah Judith Julia Karl Laura Lena
Leo Louis Lucy Mabel Marcus Martha Miles Mira Nadia Nathan Nina Nora Olga Oscar Otto Paul Peter Philip Rachel
Ralph Rosa Ruth Samuel Sarah Simon Stella Thomas Vera Victor Walter Wanda Zoe
""".split()  # noqa: SIM905
RELATIONS = ("lives near the", "carries the", "sold the", "painted the")


class Facts(NamedTuple):
    """Statements to hide and the questions they answer."""

    statements: list[str]
    questions: list[tuple[str, str]]


def digits(random: Random) -> str:
    return f"{random.randrange(100_000):05d}"


def pass_key(word: str, value: str) -> str:
    """The fixed form of the task."""
    return f"The pass key for {word} is {value}."


def pass_keys(random: Random, words: list[str], asked: int) -> Facts:
    """One value for each word; `asked` of them are asked for, each alone."""
    values = {word: digits(random) for word in words}
    chosen = random.sample(words, asked)
    return Facts(
        [pass_key(word, value) for word, value in values.items()],
        [(f"The pass key for {word} is", f" {values[word]}") for word in chosen],
    )


def many_queries(random: Random, words: list[str], asked: int) -> Facts:
    """One value for each word; one question asks for several in a given order."""
    values = {word: digits(random) for word in words}
    chosen = random.sample(words, asked)
    question = f"Give the pass keys for {', '.join(chosen)}: {chosen[0]} is"
    answer = ", ".join([f" {values[chosen[0]]}", *(f"{word} is {values[word]}" for word in chosen[1:])])
    return Facts([pass_key(word, value) for word, value in values.items()], [(question, answer)])


def many_values(random: Random, word: str, count: int) -> Facts:
    """One word with several values; the question asks for all in the order of the text."""
    values = [digits(random) for _ in range(count)]
    answer = f", {word} is ".join(values)
    return Facts([pass_key(word, value) for value in values], [(f"Give all the pass keys for {word}: {word} is", f" {answer}")])


def variables(random: Random, chain: list[str]) -> Facts:
    """A chain of variables: the first has a value, each later one equals the one before; asked for the last."""
    value = digits(random)
    names = [value, *chain]
    statements = [f"The variable {name} equals {names[at]}." for at, name in enumerate(chain)]
    answer = " equals".join(f" {name}" for name in reversed(names[:-1]))
    return Facts(statements, [(f"Follow the variable {chain[-1]}: {chain[-1]} equals", answer)])


def people(random: Random, words: list[str], asked: int) -> Facts:
    """One fact about a person for each word; questions are of the same relation and person."""
    pairs = random.sample([(name, relation) for name in NAMES for relation in RELATIONS], len(words))
    facts = [(f"{name} {relation}", f" {word}") for (name, relation), word in zip(pairs, words, strict=True)]
    return Facts([f"{start}{end}." for start, end in facts], random.sample(facts, asked))


def votes(random: Random, words: list[str], count: int) -> Facts:
    """Aggregation: the first word gets clearly more votes than each of the others."""
    others = len(words) - 1
    lead = count // len(words) + 3
    ballots = [words[0]] * lead + [words[1 + at % others] for at in range(count - lead)]
    random.shuffle(ballots)
    return Facts([f"One vote goes to {word}." for word in ballots], [("Most votes go to", f" {words[0]}")])
