"""The tasks, in RULER's groups: statements in held-out prose, words the pair never saw as keys, one question at the end."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from benchmarks import text
from benchmarks.quality import forms
from benchmarks.text import haystack

_MARGIN = 4  # tokens by which a prompt may stay below its nominal length


@dataclass(frozen=True)
class Example:
    """One prompt and its only true answer; `question` is the end of the prompt that asks."""

    task: str
    length: int
    number: int
    prompt: str
    question: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A kind of example: RULER's group, and statements and one question drawn at random."""

    group: str
    draw: Callable[[Random, list[str]], forms.Facts]
    common_words: bool = False  # words of one token each, as RULER's keys are common words
    by_parts: bool = False  # the part of the values that is there counts: hardly any answer is right as a whole


def _one(random: Random, facts: forms.Facts, others: forms.Facts) -> forms.Facts:
    """The statements of both, in the order each needs, and the first one's question."""
    merged = [(random.random(), one) for one in others.statements]
    merged += zip(sorted(random.random() for _ in facts.statements), facts.statements, strict=True)
    return forms.Facts([one for _, one in sorted(merged)], facts.questions)


TASKS = {
    "single_needle": Task("retrieval", lambda r, w: forms.pass_keys(r, w[:1], 1)),
    "multi_key": Task("retrieval", lambda r, w: forms.pass_keys(r, w[:16], 1)),
    "multi_value": Task("retrieval", lambda r, w: _one(r, forms.many_values(r, w[0], 3), forms.pass_keys(r, w[1:7], 0))),
    "multi_query": Task("retrieval", lambda r, w: forms.many_queries(r, w[:8], 3), common_words=True),
    "six_queries": Task("retrieval", lambda r, w: forms.many_queries(r, w[:8], 6), common_words=True, by_parts=True),
    "variables": Task("tracing", lambda r, w: _one(r, forms.variables(r, w[:3]), forms.variables(r, w[3:6]))),
    "votes": Task("aggregation", lambda r, w: forms.votes(r, w[:3], 18)),
    "facts": Task("question answering", lambda r, w: forms.people(r, w[:12], 1)),
}
CONTINUATION = "continuation"


def example(task: str, length: int, number: int, count_tokens: Callable[[str], int], depth: float | None = None) -> Example:
    """The example `number` of a task at a length in tokens; the same arguments give the same example.

    `depth` places all statements at one relative place of the text (0 the beginning, 1 the end) in place of random ones.
    """
    random = Random(f"{task}/{length}/{number}/{depth}")
    words = text.lower_case_words(held_out=True)
    if TASKS[task].common_words:
        words = tuple(word for word in words if count_tokens(" " + word) == 1)
    facts = TASKS[task].draw(random, random.sample(words, 16))
    question, answer = facts.questions[0]
    budget = length - _MARGIN - count_tokens("\n\n" + question) - sum(count_tokens(" " + one) for one in facts.statements)
    prose = haystack.prose(random, budget, count_tokens)
    places = sorted(random.random() for _ in facts.statements) if depth is None else [depth] * len(facts.statements)
    prompt = " ".join(haystack.hidden(prose, facts.statements, places)) + "\n\n" + question
    return Example(task, length, number, prompt, question, answer)


def continuation(length: int, number: int, count_tokens: Callable[[str], int], words: int = 12) -> Example:
    """Held-out prose cut at a sentence, and the next words as the answer."""
    random = Random(f"{CONTINUATION}/{length}/{number}")
    prose = " ".join(haystack.prose(random, length + 4 * words, count_tokens)).split(" ")
    return Example(CONTINUATION, length, number, " ".join(prose[:-words]), "", " " + " ".join(prose[-words:]))


def conversation(length: int, number: int, count_tokens: Callable[[str], int], turns: int) -> tuple[str, list[tuple[str, str]]]:
    """A document with one pass key per turn and the questions in another order."""
    random = Random(f"conversation/{length}/{number}")
    facts = forms.pass_keys(random, random.sample(text.lower_case_words(held_out=True), turns), turns)
    budget = length - sum(count_tokens(" " + one) for one in facts.statements)
    places = [(at + random.random()) / turns for at in range(turns)]
    return " ".join(haystack.hidden(haystack.prose(random, budget, count_tokens), facts.statements, places)), facts.questions


def is_right(example: Example, output: str) -> bool:
    """Exact match: the output begins with the answer, and the answer ends where a word or number ends."""
    return re.match(re.escape(example.answer.strip()) + r"(?!\w)", output.strip()) is not None


def recall(example: Example, output: str) -> float:
    """The part of the answer's values or words that the output has."""
    wanted = set(re.findall(r"\d{5}", example.answer)) or {example.answer.strip()}
    return sum(one in output for one in wanted) / len(wanted)
