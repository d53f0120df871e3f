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
        On the device of `slots`, as are the next two.
    visible : int32 [prompts, votes]
        Leading tokens of its prompt that each query sees; 0: it does not vote.
    counted : int32 [prompts, 2]
        Begin and end of each prompt's tokens on which attention counts.
    max_tokens : int
        Tokens of the longest prompt, on the host: sizes of launches come from it without a synchronisation.
    """

    slots: torch.Tensor
    starts: torch.Tensor
    visible: torch.Tensor
    counted: torch.Tensor
    max_tokens: int


def pack(slots: Sequence[torch.Tensor], visible: Sequence[Sequence[int]], counted: Sequence[tuple[int, int]]) -> PackedPrompts:
    """Put at least one prompt's slots (int64 [prompt_tokens] each, one device) behind one another."""
    lengths = [len(one) for one in slots]
    device = slots[0].device
    rows = max(len(one) for one in visible)
    padded = [[*one, *[0] * (rows - len(one))] for one in visible]
    return PackedPrompts(
        slots=torch.cat(list(slots)),
        starts=torch.tensor([0, *np.cumsum(lengths)], device=device),
        visible=torch.tensor(padded, dtype=torch.int32, device=device),
        counted=torch.tensor(counted, dtype=torch.int32, device=device),
        max_tokens=max(lengths),
    )
