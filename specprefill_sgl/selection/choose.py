"""The best chunks, on the scores' device, for several prompts at once: one copy to the host a group."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from specprefill_sgl.selection.budget import free_chunks
from specprefill_sgl.selection.chunks import Cut, leading_run


class Chosen(NamedTuple):
    """What was chosen of one prompt.

    Attributes
    ----------
    chunks : int64 [kept_chunks], ascending. Ties went to the lower index.
    scores : float32 [chunks]
    """

    chunks: np.ndarray
    scores: np.ndarray


def choose(scores: Sequence[torch.Tensor], forced: Sequence[np.ndarray], free: Sequence[int]) -> list[Chosen]:
    """`best_chunks` of every prompt.

    Parameters
    ----------
    scores : sequence of float32 [chunks]
        From `chunk_scores`, all on one device.
    forced : sequence of bool [chunks]
        Kept whatever their score, of each prompt.
    free : sequence of int
        How many more to keep, of each prompt.

    Raises
    ------
    ValueError
        If a score is not finite.
    """
    padded = pad_sequence(list(scores), batch_first=True, padding_value=float("-inf"))
    settings = np.zeros((len(forced), padded.shape[1] + 1), dtype=np.int32)  # forced chunks, then the budget
    for row, fixed, budget in zip(settings, forced, free, strict=True):
        row[: len(fixed)] = fixed
        row[-1] = budget
    on_device = torch.from_numpy(settings).to(padded.device, non_blocking=True)
    fixed, budgets = on_device[:, :-1].bool(), on_device[:, -1:]
    order = padded.masked_fill(fixed, float("-inf")).argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(padded.shape[1], device=padded.device)
    chosen = torch.zeros_like(fixed).scatter_(1, order, rank < budgets)
    kept, copied = torch.stack([(fixed | chosen).float(), padded]).cpu().numpy()
    own = [copied[row, : len(one)].copy() for row, one in enumerate(forced)]
    if not all(np.isfinite(one).all() for one in own):
        raise ValueError("the draft's scores are not finite")
    return [Chosen(np.flatnonzero(row), one) for row, one in zip(kept, own, strict=True)]


def best_chunks(scores: np.ndarray, forced: np.ndarray, free: int) -> np.ndarray:
    """The forced and the `free` best others of float [chunks]: int64, ascending. Ties go to the lower index.

    Raises
    ------
    ValueError
        If a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("the draft's scores are not finite")
    order = np.argsort(-scores, kind="stable")
    chosen = order[~forced[order]][:free]
    return np.sort(np.concatenate([np.flatnonzero(forced), chosen]))


def best_after(paid: int, scores: np.ndarray, prompt: Cut, keep_ratio: float, unit: str) -> np.ndarray:
    """Kept chunks where the first `paid` cost nothing and the budget is for the rest: int64, ascending.

    Chosen chunks that lengthen the free prefix count as free too, until nothing changes. So the next prompt that finds this
    one's prefix in a cache chooses the same chunks.
    """
    while True:
        rest = prompt.after(paid)
        chosen: np.ndarray = paid + best_chunks(scores[paid:], rest.forced, free_chunks(rest, keep_ratio, unit))
        longer = paid + leading_run(chosen - paid)
        if longer == paid or longer == len(scores):
            return np.concatenate([np.arange(paid), chosen])
        paid = longer
