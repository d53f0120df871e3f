"""Votes for a reader's tokens as votes for the target's, where the two have different tokenizers (issue Readers, 4)."""

import numpy as np
import torch

from specprefill_sgl.request.prompts import Cast


def over_target(cast: Cast) -> Cast:
    """The same votes for the target's tokens; as it is where the reader reads those."""
    if (reading := cast.reading) is None:
        return cast
    votes = largest_over(cast.votes, reading.first, reading.past)
    positions = [reading.position_of(position) for position in cast.positions]
    return cast._replace(votes=votes, tokens=[-1] * len(positions), positions=positions, reading=None)


def largest_over(votes: torch.Tensor, first: np.ndarray, past: np.ndarray) -> torch.Tensor:
    """Of each of the target's tokens, the largest vote for a reader's token that overlaps it.

    Parameters
    ----------
    votes : float32 [votes, read_tokens]
    first, past : int64 [prompt_tokens]
        The overlapping tokens of each, at least one.

    Returns
    -------
    float32 [votes, prompt_tokens]
    """
    lengths = past - first
    ends = lengths.cumsum()
    read = np.arange(ends[-1]) - np.repeat(ends - lengths - first, lengths)
    owners = torch.from_numpy(np.repeat(np.arange(len(first)), lengths)).to(votes.device)
    taken = votes[:, torch.from_numpy(read).to(votes.device)]
    found = votes.new_full((len(votes), len(first)), -torch.inf)
    return found.scatter_reduce_(1, owners.expand(len(votes), -1), taken, "amax")
