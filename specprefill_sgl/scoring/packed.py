"""Several prompts laid out behind one another, so that a kernel reads the keys of all of them in one launch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class PackedPrompts(NamedTuple):
    """Prompts of any lengths, one after the other. Prompt p has the tokens `starts[p]` to `starts[p + 1]` of the whole.

    Attributes
    ----------
    slots : int64 [total_tokens]
        KV slot of every token, in any order: page size does not matter.
    starts : int64 [prompts + 1]
        On the device of `slots`, as is `n_votes`.
    n_votes : int32 [prompts]
        Queries of each prompt that vote; 0 for a prompt on which a layer does not vote.
    max_tokens : int
        Tokens of the longest prompt, on the host: sizes of launches come from it without a synchronisation.
    """

    slots: torch.Tensor
    starts: torch.Tensor
    n_votes: torch.Tensor
    max_tokens: int


def pack(slots: Sequence[torch.Tensor], n_votes: Sequence[int]) -> PackedPrompts:
    """Put at least one prompt's slots (int64 [prompt_tokens] each, one device) behind one another."""
    lengths = [len(one) for one in slots]
    device = slots[0].device
    return PackedPrompts(
        slots=torch.cat(list(slots)),
        starts=torch.tensor([0, *np.cumsum(lengths)], device=device),
        n_votes=torch.tensor(n_votes, dtype=torch.int32, device=device),
        max_tokens=max(lengths),
    )
