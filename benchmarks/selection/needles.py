"""Statements hidden in prose: pass keys, variables, facts about people, votes."""

from benchmarks.quality import forms
from benchmarks.selection import words
from benchmarks.selection.examples import Piece, Prompt, Setting
from benchmarks.text import haystack

_KEYS = 8
_FACTS = 10
_QUESTIONS = {
    "lives near the": "What does {} live near?",
    "carries the": "What does {} carry?",
    "sold the": "What did {} sell?",
    "painted the": "What did {} paint?",
}
_BALLOTS = (9, 5, 4)  # votes of each candidate for every thousand tokens


def needle(setting: Setting) -> Prompt:
    """One pass key."""
    return _pass_keys(setting, 1, 1)


def multi_key(setting: Setting) -> Prompt:
    """One of eight pass keys."""
    return _pass_keys(setting, _KEYS, 1)


def multi_query(setting: Setting) -> Prompt:
    """Three of eight pass keys at once."""
    return _pass_keys(setting, _KEYS, 3)


def _pass_keys(setting: Setting, stated: int, asked: int) -> Prompt:
    random = setting.random
    keys = words.nouns(random, stated, held_out=setting.held_out)
    values = {key: forms.digits(random) for key in keys}
    chosen = random.sample(keys, asked)
    listed = " and ".join([", ".join(chosen[:-1]), chosen[-1]] if asked > 1 else chosen)
    question = f"What {'are the pass keys' if asked > 1 else 'is the pass key'} for {listed}?"
    answer: list[Piece] = []
    for at, key in enumerate(chosen):
        answer += [Piece(f"{' ' if at else ''}The pass key for {key} is"), Piece(f" {values[key]}", judged=True), Piece(".")]
    statements = [forms.pass_key(key, value) for key, value in values.items()]
    return Prompt(
        _hidden(setting, statements, question), question, answer, [forms.pass_key(key, values[key]) for key in chosen]
    )


def variables(setting: Setting) -> Prompt:
    """Three chains of two variables, each chain in order; asked for the value at the end of one."""
    random = setting.random
    names = words.nouns(random, 6, held_out=setting.held_out)
    chains = [forms.variables(random, names[at : at + 2]) for at in (0, 2, 4)]
    placed: list[tuple[float, str]] = []
    for chain in chains:
        placed += zip(sorted(random.random() for _ in chain.statements), chain.statements, strict=True)
    first, last = names[:2]
    question = f"What is the value of the variable {last}? First say which variable it equals."
    value = chains[0].questions[0][1].split()[-1]
    answer = [Piece(f"The variable {last} equals"), Piece(f" {first}", judged=True)]
    answer += [Piece(f". The variable {first} equals"), Piece(f" {value}", judged=True)]
    statements = [statement for _, statement in sorted(placed)]
    return Prompt(_hidden(setting, statements, question), question, answer, chains[0].statements)


def facts(setting: Setting) -> Prompt:
    """A question about one of ten natural sentences about people."""
    random = setting.random
    objects = words.nouns(random, _FACTS, held_out=setting.held_out)
    pairs = [(name, relation) for name in words.names(held_out=setting.held_out) for relation in forms.RELATIONS]
    stated = random.sample(pairs, _FACTS)
    starts = [f"{name} {relation}" for name, relation in stated]
    statements = [f"{start} {one}." for start, one in zip(starts, objects, strict=True)]
    name, relation = stated[0]
    question = _QUESTIONS[relation].format(name)
    answer = [Piece(starts[0]), Piece(f" {objects[0]}", judged=True)]
    asked = statements[0]
    random.shuffle(statements)
    return Prompt(_hidden(setting, statements, question), question, answer, [asked])


def votes(setting: Setting) -> Prompt:
    """Aggregation: many single votes, more in longer prompts; which of three words got the most."""
    random = setting.random
    candidates = words.nouns(random, len(_BALLOTS), held_out=setting.held_out)
    share = setting.length / 1000
    ballots = [one for one, many in zip(candidates, _BALLOTS, strict=True) for _ in range(round(many * share))]
    random.shuffle(ballots)
    question = "Which word got the most votes?"
    answer = [Piece("Most votes go to"), Piece(f" {candidates[0]}", judged=True)]
    return Prompt(_hidden(setting, [f"One vote goes to {one}." for one in ballots], question), question, answer, [])


def _hidden(setting: Setting, statements: list[str], question: str) -> str:
    """Prose that fills the prompt, with the statements at random places in this order."""
    room = setting.room(question, *statements)
    prose = haystack.prose(setting.random, room, setting.count, held_out=setting.held_out)
    return " ".join(haystack.hidden(prose, statements, sorted(setting.random.random() for _ in statements)))
