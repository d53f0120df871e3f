"""Real prose: its next words, and words of it that must be quoted."""

import re

from benchmarks import text
from benchmarks.selection.examples import Piece, Prompt, Setting
from benchmarks.text import haystack

_QUOTED = 8  # words given, and words asked for
_NEXT = 48  # tokens of a continuation
_QUESTION = 40  # tokens of a question that quotes words, at most


def cloze(setting: Setting) -> Prompt:
    """Eight words of a sentence are given; the next eight must be quoted."""
    random = setting.random
    body = " ".join(haystack.prose(random, setting.room() - _QUESTION, setting.count, held_out=setting.held_out))
    choices = [match for match in re.finditer(r"(?:\S+ ){7}\S+(?= )", body) if _quotable(body, match)]
    chosen = random.choice(choices)
    given, rest = chosen[0], " " + " ".join(body[chosen.end() :].split()[:_QUOTED])
    question = f'Which words follow "{given}" in the text?'
    return Prompt(body, question, [Piece(given), Piece(rest, judged=True)], [given + rest])


def continuation(setting: Setting) -> Prompt:
    """The tokens that follow the text; the answer repeats its last words first, which do not count."""
    random = setting.random
    source = text.book(random.choice(text.BOOKS), held_out=setting.held_out)
    room = setting.room() - _QUESTION
    starts = [match.end() for match in re.finditer(r"[.!?] ", source[: -8 * room])]
    start = random.choice(starts)
    window = source[start : start + 8 * room]
    cut = window.rindex(" ", 0, setting.offsets(window)[room][0])
    body = window[:cut]
    last = " ".join(body.split()[-_QUOTED:])
    following = window[cut : cut + 12 * _NEXT]
    return Prompt(body, f'Continue the text after "{last}".', [Piece(last), Piece(following, judged=True, most=_NEXT)], [])


def _quotable(body: str, match: re.Match) -> bool:
    """Whether plain words follow, and the given words and those that follow are found once."""
    following = body[match.end() :].split()[:_QUOTED]
    whole = f"{match[0]} {' '.join(following)}"
    plain = not re.search(r'["\n]', whole) and not re.search(r"[.!?]", whole[:-1])
    return plain and len(following) == _QUOTED and body.count(match[0]) == 1 and body.count(whole) == 1
