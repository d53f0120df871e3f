"""A prompt cut into chunks, and those that are kept whatever their score. Pure NumPy: no device, no batch, no clock."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Cut(NamedTuple):
    """A prompt in chunks.

    Attributes
    ----------
    n_tokens : int
    size : int
        Tokens per chunk; the last may be shorter.
    forced : bool [chunks]
        Kept whatever their score; the last one always.
    """

    n_tokens: int
    size: int
    forced: np.ndarray

    def after(self, chunks: int) -> "Cut":
        """Without so many chunks at the start, at least one less than all."""
        return Cut(self.n_tokens - chunks * self.size, self.size, self.forced[chunks:])

    def positions(self, chunks: np.ndarray) -> np.ndarray:
        """Token positions of the given chunks, int64 [kept_tokens]."""
        positions = (chunks[:, None] * self.size + np.arange(min(self.size, self.n_tokens))).ravel()
        return positions[positions < self.n_tokens]

    @property
    def forced_tokens(self) -> int:
        """Tokens of the chunks that are kept whatever their score."""
        return len(self.positions(np.flatnonzero(self.forced)))

    @property
    def forced_tail(self) -> int:
        """Tokens of such chunks that end the prompt."""
        first = len(self.forced) - leading_run(np.flatnonzero(self.forced[::-1]))
        return self.n_tokens - first * self.size


def chunk_count(n_tokens: int, chunk_size: int) -> int:
    """Number of chunks of a prompt; the last may be shorter."""
    return -(-n_tokens // chunk_size)


def cut(
    n_tokens: int,
    *,
    chunk_size: int,
    keep_first: int = 0,
    keep_last: int = 0,
    protect: Sequence[tuple[int, int]] = (),
) -> Cut:
    """Forced are the last chunk and those touched by the first or last tokens or a protected span."""
    forced: np.ndarray = np.zeros(chunk_count(n_tokens, chunk_size), dtype=bool)
    forced[-1:] = True
    for start, end in ((0, min(keep_first, n_tokens)), (max(n_tokens - keep_last, 0), n_tokens), *protect):
        if start < end:
            forced[start // chunk_size : chunk_count(end, chunk_size)] = True
    return Cut(n_tokens, chunk_size, forced)


def leading_run(positions: np.ndarray) -> int:
    """How many positions from 0 on are kept without a gap; `positions` ascend."""
    gaps = np.flatnonzero(positions != np.arange(len(positions)))
    return int(gaps[0]) if len(gaps) else len(positions)
