"""Hidden states of tokens that wait in front of a layer: each is computed once and leaves once."""

import numpy as np
import torch


class Parked:
    """Tokens of one request that have come as far as one layer.

    Attributes
    ----------
    positions : int64 [tokens]
        In the order they came.
    """

    def __init__(self) -> None:
        self.positions: np.ndarray = np.arange(0)
        self._hidden: list[torch.Tensor] = []

    def add(self, positions: np.ndarray, hidden: torch.Tensor) -> None:
        """More tokens, [tokens, hidden_size]."""
        self.positions = np.concatenate([self.positions, positions])
        self._hidden.append(hidden)

    def take(self, positions: np.ndarray) -> torch.Tensor:
        """These tokens, which leave: [tokens, hidden_size] in the order asked for."""
        order = np.argsort(self.positions, kind="stable")
        at = order[np.searchsorted(self.positions, positions, sorter=order)]
        stay = np.setdiff1d(np.arange(len(self.positions)), at)
        hidden = torch.cat(self._hidden)
        leaving, staying = (hidden[torch.from_numpy(which).to(hidden.device)] for which in (at, stay))
        self.positions, self._hidden = self.positions[stay], [staying]
        return leaving

    def clear(self) -> None:
        """All are gone."""
        self.positions, self._hidden = np.arange(0), []

    @property
    def n_bytes(self) -> int:
        """Of their hidden states."""
        return sum(one.numel() * one.element_size() for one in self._hidden)
