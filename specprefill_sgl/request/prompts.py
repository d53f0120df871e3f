"""What goes into the speculation stage and what comes out of it, per prompt."""

from array import array
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from specprefill_sgl.request.reading import Reading
from specprefill_sgl.selection.chunks import Cut, cut
from specprefill_sgl.selection.rule import PAPER, Rule

if TYPE_CHECKING:
    import torch


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt to speculate on.

    Attributes
    ----------
    ids : array('q') [prompt_tokens]
    keep_ratio : float
        Fraction to keep of what is not cached.
    rule : Rule
        How tokens are chosen.
    method : str
        Who says which matter.
    protect : tuple of (start, end)
        Spans that are always kept, in tokens.
    keep_first, keep_last : int
        Tokens at both ends that are always kept.
    namespace : tuple
        What separates prefix caches: SGLang's `extra_key` and `cache_salt`.
    cached : int
        Tokens that are kept for free. The target's radix cache holds their KV: of those at the start, undropped, or of `kept`;
        to them belongs the end of an earlier answer, which a hybrid target's cache does not hold.
    kept : int64 [tokens] or None
        What an earlier turn of this prompt prefilled, its answer included, in that order: it stays in front.
    min_tokens : int
        If fewer are not cached, there is nothing to gain.
    return_votes : bool
        Whether the outcome is to hold the votes.
    reading : Reading or None
        What a reader with a tokenizer of its own reads; None: the ids themselves.
    answer : array('q') [output_tokens]
        What was answered so far, to bring back dropped tokens that it asks for: then its last `fresh` tokens vote, on the
        prompt, and at most `most_revived` chunks are added to what is `kept`.
    fresh, most_revived : int
    """

    ids: array
    keep_ratio: float
    rule: Rule = PAPER
    method: str = "draft"
    protect: tuple[tuple[int, int], ...] = ()
    keep_first: int = 0
    keep_last: int = 0
    namespace: tuple[str | None, str | None] = (None, None)
    cached: int = 0
    kept: np.ndarray | None = None
    min_tokens: int = 0
    return_votes: bool = False
    reading: Reading | None = None
    answer: array = msgspec.field(default_factory=lambda: array("q"))
    fresh: int = 0
    most_revived: int = 0

    @property
    def read_ids(self) -> array:
        """What the reader reads of the prompt, and is voted on."""
        return self.ids if self.reading is None else self.reading.ids

    @property
    def window(self) -> int:
        """Last tokens that vote."""
        return self.fresh if self.answer else self.rule.window

    @property
    def settings(self) -> tuple:
        """What the selection depends on besides the ids."""
        return self.method, self.keep_ratio, self.rule, self.keep_first, self.keep_last, self.protect

    @property
    def cut(self) -> Cut:
        """The prompt in chunks, with those that are kept whatever their score."""
        return cut(
            len(self.ids),
            chunk_size=self.rule.chunk_size,
            keep_first=self.keep_first,
            keep_last=self.keep_last,
            protect=self.protect,
        )

    @property
    def counted(self) -> tuple[int, int]:
        """Begin and end of the tokens that are read on which attention counts."""
        n_tokens, rule = len(self.ids), self.rule
        end = n_tokens - self.cut.forced_tail if rule.ignore_tail else n_tokens
        begin = min(rule.ignore_first, end)
        return (begin, end) if self.reading is None else self.reading.range_of(begin, end)


class Cast(NamedTuple):
    """The votes cast on one prompt; those of the window come first.

    Attributes
    ----------
    votes : float32 [votes, prompt_tokens]
        Pooled attention.
    n_window : int
        Votes of the window.
    tokens, positions : list of int
        Of the queries' tokens; -1 for one of another vocabulary than the target's.
    reading : Reading or None
        Whose tokens all of these are; None: the prompt's own.
    """

    votes: "torch.Tensor"
    n_window: int
    tokens: list[int]
    positions: list[int]
    reading: Reading | None = None


class Predicted(NamedTuple):
    """KV of so many tokens at a prompt's start is in the target's radix cache, under their codes (`request.skipcode`)."""

    tokens: int


class Votes(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for what, to explain a selection.

    Attributes
    ----------
    tokens : list of int
        Ids of the queries' tokens: those of the window, then the last prompt token and what was decoded after it, which is -1
        if it is not of the target's vocabulary.
    positions : list of int
        Their positions; from the prompt's length on they were decoded.
    chunks : float32 [queries, chunks]
        Mean pooled attention of each query on the chunk's tokens.
    """

    tokens: list[int]
    positions: list[int]
    chunks: np.ndarray


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the stage decided on one prompt.

    Attributes
    ----------
    positions : int64 [kept_tokens] or None
        Kept original positions in the order they are prefilled; None: prefill dense, for `reason`.
    draft_ms, score_ms, select_ms : float
        Time of the group the prompt was drafted in: draft forwards, scoring, selection. Milliseconds.
    tokenize_ms : float
        Time in which the front end made a reader's own tokens of the prompt; 0 where it reads the target's.
    draft_tokens, draft_cached_tokens : int
        Tokens the prompt has for its reader, and those whose keys it had already.
    cached_tokens : int
        Prompt tokens kept because the target's radix cache held them when the prompt was selected from.
    predicted : int
        Prompt tokens at the start whose KV is predicted; then none is dropped.
    scores : float32 [chunks] or None
        What the chunks were ranked by; None where nothing was scored.
    votes : Votes or None
        Where they were asked for and something was scored.
    inside : bool
        Whether tokens are dropped inside the target's own forward, layer by layer. `positions` are then those that its last
        layers keep, all of them until the prompt is read.
    elsewhere : bool
        Whether another server decided: it alone knows positions, scores and votes (`request.handover`).
    """

    positions: np.ndarray | None
    reason: str | None = None
    draft_ms: float = 0.0
    score_ms: float = 0.0
    select_ms: float = 0.0
    tokenize_ms: float = 0.0
    draft_tokens: int = 0
    draft_cached_tokens: int = 0
    cached_tokens: int = 0
    predicted: int = 0
    scores: np.ndarray | None = None
    votes: Votes | None = None
    inside: bool = False
    elsewhere: bool = False

    def is_whole(self, prompt_tokens: int) -> bool:
        """Whether everything is kept because the budget covers it."""
        return self.positions is not None and len(self.positions) == prompt_tokens
