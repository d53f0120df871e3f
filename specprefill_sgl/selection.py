"""Which chunks of a prompt are kept (README, What is computed, 5). Pure NumPy: no device, no batch, no clock."""

import math
from collections.abc import Sequence

import numpy as np


def chunk_count(n_tokens: int, chunk_size: int) -> int:
    """Number of chunks of a prompt; the last may be shorter."""
    return -(-n_tokens // chunk_size)


def chunk_budget(n_chunks: int, keep_ratio: float) -> int:
    """How many chunks a keep ratio stands for."""
    return math.ceil(n_chunks * keep_ratio)


def window_tail(n_tokens: int, *, window: int, chunk_size: int, keep_ratio: float) -> int:
    """Tokens at the end to keep for a target with a sliding window: the window, as far as half of the budget holds it.

    None where the window covers the prompt: its layers then see every kept token, as full attention does.
    """
    if n_tokens <= window:
        return 0
    n_chunks = chunk_count(n_tokens, chunk_size)
    start = (n_chunks - chunk_budget(n_chunks, keep_ratio) // 2) * chunk_size
    return min(window, max(n_tokens - start, 0))


def forced_chunks(
    n_tokens: int,
    *,
    chunk_size: int,
    keep_first: int = 0,
    keep_last: int = 0,
    protect: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """Chunks kept whatever their score: the last one and those touched by the first or last tokens or a protected span.

    Returns
    -------
    bool [chunks]
    """
    forced: np.ndarray = np.zeros(chunk_count(n_tokens, chunk_size), dtype=bool)
    forced[-1:] = True
    for start, end in ((0, min(keep_first, n_tokens)), (max(n_tokens - keep_last, 0), n_tokens), *protect):
        if start < end:
            forced[start // chunk_size : chunk_count(end, chunk_size)] = True
    return forced


def free_budget(forced: np.ndarray, keep_ratio: float) -> int:
    """How many chunks the scores may choose: forced chunks count toward the budget but never eat more than half of it."""
    budget = chunk_budget(len(forced), keep_ratio)
    n_forced = int(forced.sum())
    return min(max(budget - n_forced, math.ceil(budget / 2)), len(forced) - n_forced)


def keeps_everything(forced: np.ndarray, keep_ratio: float) -> bool:
    """Whether the budget covers every chunk, so that no draft is needed."""
    return int(forced.sum()) + free_budget(forced, keep_ratio) == len(forced)


def select_chunks(scores: np.ndarray, forced: np.ndarray, keep_ratio: float) -> np.ndarray:
    """Kept chunks.

    Parameters
    ----------
    scores : float [chunks]
        Mean importance of each chunk's tokens.
    forced : bool [chunks]
        From `forced_chunks`.
    keep_ratio : float
        Fraction of the chunks to keep.

    Returns
    -------
    int64 [kept_chunks], ascending. Ties go to the lower index.

    Raises
    ------
    ValueError
        If a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("the draft's scores are not finite")
    order = np.argsort(-scores, kind="stable")
    chosen = order[~forced[order]][: free_budget(forced, keep_ratio)]
    return np.sort(np.concatenate([np.flatnonzero(forced), chosen]))


def chunk_positions(chunks: np.ndarray, n_tokens: int, chunk_size: int) -> np.ndarray:
    """Token positions of the given chunks, int64 [kept_tokens]."""
    positions = (chunks[:, None] * chunk_size + np.arange(chunk_size)).ravel()
    return positions[positions < n_tokens]


def leading_run(positions: np.ndarray) -> int:
    """How many positions from 0 on are kept without a gap; `positions` ascend."""
    gaps = np.flatnonzero(positions != np.arange(len(positions)))
    return int(gaps[0]) if len(gaps) else len(positions)


def select_after(free: int, scores: np.ndarray, forced: np.ndarray, keep_ratio: float) -> np.ndarray:
    """Kept chunks where the first `free` cost nothing and the budget is for the rest: int64, ascending.

    Chosen chunks that lengthen the free prefix count as free too, until nothing changes. So the next prompt that finds this
    one's prefix in a cache chooses the same chunks.
    """
    while True:
        chosen: np.ndarray = free + select_chunks(scores[free:], forced[free:], keep_ratio)
        longer = free + leading_run(chosen - free)
        if longer == free or longer == len(scores):
            return np.concatenate([np.arange(free), chosen])
        free = longer
