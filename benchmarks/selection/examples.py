"""An example of a task, and how its parts become the tokens of a chat prompt and of its teacher-forced answer."""

import functools
from random import Random
from typing import NamedTuple

import msgspec

LENGTHS = (1024, 2048, 4096, 7168)
SPLITS = ("calibration", "held_out")
_MARGIN = 8  # tokens by which the sum of the pieces may miss the count of the whole


class Example(msgspec.Struct, frozen=True):
    """One prompt with its only true answer.

    Attributes
    ----------
    task, number, length, split
        What `tasks.example` was asked for; `length` is nominal, in tokens.
    ids : list of int
        The prompt in the tokenizer's chat format, the assistant's header included: at most `length` tokens.
    answer : list of int
        The tokens that follow the prompt when the answer is right.
    judged : list of bool
        For each answer token whether it counts for the loss: values do, the wording around them does not.
    evidence : list of (int, int)
        Token spans [start, end) of the prompt that a reader needs; empty where no span is needed more than others.
    question : (int, int)
        Token span [start, end) of the question or instruction that ends the user's message.
    """

    task: str
    number: int
    length: int
    split: str
    ids: list[int]
    answer: list[int]
    judged: list[bool]
    evidence: list[tuple[int, int]]
    question: tuple[int, int]


class Piece(NamedTuple):
    """A part of an answer; `most` cuts it after so many tokens."""

    text: str
    judged: bool = False
    most: int | None = None


class Prompt(NamedTuple):
    """What a task makes: `evidence` are parts of `body`, each found in it once; `between` stands before the question."""

    body: str
    question: str
    answer: list[Piece]
    evidence: list[str]
    between: str = "\n\n"


class Setting:
    """What a task draws from: random numbers of its own, a split's material, and a length in tokens of one tokenizer."""

    def __init__(self, random: Random, split: str, length: int, tokenizer) -> None:
        self.random = random
        self.length = length
        self.tokenizer = tokenizer
        self.held_out = split == "held_out"

    def count(self, text: str) -> int:
        """Tokens of a piece of text that is not the beginning of a prompt."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def room(self, *others: str) -> int:
        """Tokens left for text beside the chat format and these pieces."""
        return self.length - _MARGIN - self._frame - sum(self.count(" " + other) for other in others)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Character span of each token of a text."""
        return self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]

    @functools.cached_property
    def _frame(self) -> int:
        return self.count(chat(self.tokenizer, "\n\n"))


def chat(tokenizer, content: str) -> str:
    """The text of a conversation that waits for the answer to one user message."""
    messages = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def assemble(task: str, number: int, split: str, setting: Setting, prompt: Prompt) -> Example:
    """The tokens of a prompt and its answer, and where its evidence and question lie.

    Raises
    ------
    ValueError
        It is longer than nominal or a tenth shorter, or its evidence is not found exactly once.
    """
    content = prompt.body + prompt.between + prompt.question
    whole = chat(setting.tokenizer, content)
    start = whole.index(content)
    encoded = setting.tokenizer(whole, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if not 0.9 * setting.length <= len(ids) <= setting.length:
        raise ValueError(f"{task} {number} has {len(ids)} tokens where its length is {setting.length}")
    asked = start + len(prompt.body) + len(prompt.between)
    answer, judged = _answer(setting.tokenizer, prompt.answer)
    return Example(
        task=task,
        number=number,
        length=setting.length,
        split=split,
        ids=ids,
        answer=answer,
        judged=judged,
        evidence=[_tokens(offsets, *_place(prompt.body, one, start)) for one in prompt.evidence],
        question=_tokens(offsets, asked, asked + len(prompt.question)),
    )


def _place(body: str, part: str, start: int) -> tuple[int, int]:
    """Characters [start, end) of a part of the body in the whole conversation."""
    if body.count(part) != 1:
        raise ValueError(f"the evidence {part!r} is found {body.count(part)} times, not once")
    at = start + body.index(part)
    return at, at + len(part)


def _tokens(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens that hold some character of [start, end)."""
    inside = [at for at, (first, last) in enumerate(offsets) if first < end and last > start]
    return inside[0], inside[-1] + 1


def _answer(tokenizer, pieces: list[Piece]) -> tuple[list[int], list[bool]]:
    answer: list[int] = []
    judged: list[bool] = []
    for piece in pieces:
        ids = tokenizer.encode(piece.text, add_special_tokens=False)[: piece.most]
        answer += ids
        judged += [piece.judged] * len(ids)
    return answer, judged
