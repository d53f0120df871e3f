"""What goes into the speculation stage and what comes out of it, per prompt."""

from array import array

import msgspec
import numpy as np


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt to speculate on.

    Attributes
    ----------
    ids : array('q') [prompt_tokens]
    keep_ratio : float
        Fraction of the chunks to keep, of those that are not cached.
    protect : tuple of (start, end)
        Spans that are always kept, in tokens.
    keep_last : int
        Tokens at the end that are always kept.
    namespace : tuple
        What separates prefix caches: SGLang's `extra_key` and `cache_salt`.
    cached : int
        Tokens that are kept for free. The target's radix cache holds their KV: of those at the start, undropped, or of `kept`;
        to them belongs the end of an earlier answer, which a hybrid target's cache does not hold.
    kept : int64 [tokens] or None
        What an earlier turn of this prompt prefilled, its answer included, in that order: it stays in front.
    min_tokens : int
        If fewer are not cached, there is nothing to gain.
    """

    ids: array
    keep_ratio: float
    protect: tuple[tuple[int, int], ...] = ()
    keep_last: int = 0
    namespace: tuple[str | None, str | None] = (None, None)
    cached: int = 0
    kept: np.ndarray | None = None
    min_tokens: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the stage decided on one prompt.

    Attributes
    ----------
    positions : int64 [kept_tokens] or None
        Kept original positions in the order they are prefilled; None: prefill dense, for `reason`.
    draft_ms, score_ms, select_ms : float
        Time of the group the prompt was drafted in: draft forwards, scoring, selection. Milliseconds.
    draft_cached_tokens : int
        Prompt tokens whose keys the draft had already.
    cached_tokens : int
        Prompt tokens kept because the target's radix cache held them when the prompt was selected from.
    scores : float32 [chunks] or None
        Mean importance per chunk; None where nothing was scored.
    """

    positions: np.ndarray | None
    reason: str | None = None
    draft_ms: float = 0.0
    score_ms: float = 0.0
    select_ms: float = 0.0
    draft_cached_tokens: int = 0
    cached_tokens: int = 0
    scores: np.ndarray | None = None
