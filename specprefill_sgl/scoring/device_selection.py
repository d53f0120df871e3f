"""Selection on the scores' device, for several prompts at once: one copy to the host a group (README, What is computed, 5)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from specprefill_sgl import selection


class Selected(NamedTuple):
    """What was chosen of one prompt.

    Attributes
    ----------
    chunks : int64 [kept_chunks], ascending. Ties went to the lower index.
    scores : float32 [chunks]
    """

    chunks: np.ndarray
    scores: np.ndarray


def select(scores: Sequence[torch.Tensor], forced: Sequence[np.ndarray], keep_ratios: Sequence[float]) -> list[Selected]:
    """`selection.select_chunks` of every prompt.

    Parameters
    ----------
    scores : sequence of float32 [chunks]
        From `chunk_scores`, all on one device.
    forced : sequence of bool [chunks]
        From `selection.forced_chunks`, for each prompt.
    keep_ratios : sequence of float
        Fraction of the chunks to keep, for each prompt.

    Raises
    ------
    ValueError
        If a score is not finite.
    """
    padded = pad_sequence(list(scores), batch_first=True, padding_value=float("-inf"))
    settings = np.zeros((len(forced), padded.shape[1] + 1), dtype=np.int32)  # forced chunks, then the budget
    for row, fixed, keep_ratio in zip(settings, forced, keep_ratios, strict=True):
        row[: len(fixed)] = fixed
        row[-1] = selection.free_budget(fixed, keep_ratio)
    on_device = torch.from_numpy(settings).to(padded.device, non_blocking=True)
    fixed, budget = on_device[:, :-1].bool(), on_device[:, -1:]
    order = padded.masked_fill(fixed, float("-inf")).argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(padded.shape[1], device=padded.device)
    chosen = torch.zeros_like(fixed).scatter_(1, order, rank < budget)
    kept, copied = torch.stack([(fixed | chosen).float(), padded]).cpu().numpy()
    own = [copied[row, : len(one)].copy() for row, one in enumerate(forced)]
    if not all(np.isfinite(one).all() for one in own):
        raise ValueError("the draft's scores are not finite")
    return [Selected(np.flatnonzero(row), one) for row, one in zip(kept, own, strict=True)]
