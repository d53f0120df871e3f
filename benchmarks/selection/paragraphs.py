"""Questions over real paragraphs: XQuAD's English part (CC BY-SA 4.0), read by path and never copied.

`SPECPREFILL_XQUAD` names the file `xquad.en.json`; without it, it is looked for in `../shared/data` beside the repository. The
splits have other articles.
"""

import functools
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from benchmarks.selection.examples import Piece, Prompt, Setting
from benchmarks.text import haystack

_REPOSITORY = Path(__file__).parents[2]
_HINT = " Answer with words from the text."
_END = re.compile(r"(?<=[.!?])\s+")


class Asked(NamedTuple):
    """A question, its answer, and the sentence of the paragraph that holds the answer."""

    question: str
    answer: str
    sentence: str


def squad(setting: Setting) -> Prompt:
    """One question over one of many paragraphs."""
    return _ask(setting, 1)


def squad2(setting: Setting) -> Prompt:
    """Two questions at once, over two of many paragraphs."""
    return _ask(setting, 2)


def file() -> Path:
    return Path(os.environ.get("SPECPREFILL_XQUAD") or _REPOSITORY.parent / "shared" / "data" / "xquad.en.json")


def missing() -> str | None:
    """Why there are no questions; nothing if there are."""
    if file().is_file():
        return None
    return f"XQuAD is not at {file()}: set SPECPREFILL_XQUAD to the file xquad.en.json of google-deepmind/xquad"


def _ask(setting: Setting, many: int) -> Prompt:
    random = setting.random
    read = list(_paragraphs(file(), setting.held_out))
    random.shuffle(read)
    room = setting.room(_HINT)
    short = [one for one in read if setting.count(one["context"]) < room // 3]
    asked = [random.choice(_questions(one)) for one in short[:many]]
    if many == 1:
        question = asked[0].question + _HINT
        answer = [Piece("Answer:"), Piece(f" {asked[0].answer}", judged=True)]
    else:
        question = "\n".join(f"{at}. {one.question}" for at, one in enumerate(asked, 1)) + "\n" + _HINT.strip()
        answer = []
        for at, one in enumerate(asked, 1):
            answer += [Piece(f"{at}." if at == 1 else f"\n{at}."), Piece(f" {one.answer}", judged=True)]
    contexts = [one["context"] for one in short[:many]]
    others = [one["context"] for one in read if one not in short[:many]]
    texts = contexts + _filler(setting, others, setting.room(question, *contexts) - 2 * many)
    random.shuffle(texts)
    return Prompt("\n\n".join(texts), question, answer, [one.sentence for one in asked])


def _filler(setting: Setting, contexts: list[str], budget: int) -> list[str]:
    """Whole paragraphs as long as there is room, and the beginning of one more."""
    chosen: list[str] = []
    for context in contexts:
        taken = setting.count("\n\n" + context)
        if taken > budget:
            begun = haystack.filled(_END.split(context), budget - 3, setting.count)
            return [*chosen, " ".join(begun)] if begun else chosen
        chosen.append(context)
        budget -= taken
    return chosen


def _questions(paragraph: dict) -> list[Asked]:
    """The paragraph's questions; its first answer stands in one sentence each."""
    context = paragraph["context"]
    result = []
    for one in paragraph["qas"]:
        answer = one["answers"][0]
        start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
        left = max((match.end() for match in _END.finditer(context, 0, start)), default=0)
        right = next((match.start() for match in _END.finditer(context, end)), len(context))
        result.append(Asked(one["question"].strip(), answer["text"], context[left:right]))
    return result


@functools.cache
def _paragraphs(path: Path, held_out: bool) -> tuple[dict, ...]:
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    return tuple(paragraph for article in articles[int(held_out) :: 2] for paragraph in article["paragraphs"])
