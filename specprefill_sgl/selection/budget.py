"""How many chunks a keep ratio stands for, and how much of that may be kept whatever its score."""

import math

from specprefill_sgl.selection.chunks import Cut, chunk_count

WINDOW_PART = 2  # half of the budget may go to what a target's sliding window covers
_RETURN_PART = 2  # half of that window may go to what returns


def free_chunks(prompt: Cut, keep_ratio: float, unit: str) -> int:
    """How many chunks the scores may choose.

    Forced chunks count toward the budget but never eat more than half of it. A budget of tokens is filled with whole chunks.
    """
    n_forced = int(prompt.forced.sum())
    others = len(prompt.forced) - n_forced
    if unit == "chunks":
        budget = math.ceil(len(prompt.forced) * keep_ratio)
        return min(max(budget - n_forced, math.ceil(budget / 2)), others)
    budget = math.ceil(prompt.n_tokens * keep_ratio)
    tokens = max(budget - prompt.forced_tokens, math.ceil(budget / 2))
    return min(max(tokens // prompt.size, 1), others)


def keeps_everything(prompt: Cut, keep_ratio: float, unit: str) -> bool:
    """Whether the budget covers every chunk, so that no draft is needed."""
    return int(prompt.forced.sum()) + free_chunks(prompt, keep_ratio, unit) == len(prompt.forced)


def affordable_tail(n_tokens: int, wanted: int, *, part: int, chunk_size: int, keep_ratio: float, unit: str) -> int:
    """Of the tokens that are wanted at the end, as many as a part of the budget holds: half of it for 2, a third for 3.

    None where the whole prompt is wanted: the layers of a target's sliding window then see every kept token.
    """
    if n_tokens <= wanted:
        return 0
    n_chunks = chunk_count(n_tokens, chunk_size)
    if unit == "chunks":
        tail_chunks = math.ceil(n_chunks * keep_ratio) // part
    else:
        last = n_tokens - (n_chunks - 1) * chunk_size
        tail_chunks = (math.ceil(n_tokens * keep_ratio) // part - last) // chunk_size + 1
    start = (n_chunks - max(tail_chunks, 0)) * chunk_size
    return min(wanted, max(n_tokens - start, 0))


def affordable_return(window: int, returned: int, *, chunk_size: int) -> int:
    """How many chunks may return to a prompt after so many tokens did, if the target has a sliding window, of so many tokens.

    Windowed layers count kept tokens. What returns lies between the prompt's end, which was kept for that window, and the
    answer: each token that returns pushes one of the end out. Some of it must stay, however often an answer asks.
    """
    return max(window // _RETURN_PART - returned, 0) // chunk_size
