"""The Aux Cache: hidden states of dropped tokens, which may return, within a number of bytes."""

import weakref
from typing import Any

from specprefill_sgl.methods.lazy.seats import Pruned


class AuxCache:
    """Knows who holds hidden states; of those that are read the oldest loses them first.

    Parameters
    ----------
    max_bytes : int
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._held: list[tuple[weakref.ref, Pruned]] = []

    def add(self, req: Any, pruned: Pruned) -> None:
        """A request that will hold some."""
        self._held.append((weakref.ref(req), pruned))

    def make_room(self) -> None:
        """Let go of what ended, then of the oldest that are read, until the rest fits. What is being read must stay."""
        self.sweep()
        left = self.n_bytes
        for _, pruned in self._held:
            if left <= self.max_bytes:
                return
            if pruned.is_read:
                left -= pruned.n_bytes
                let_go(pruned)

    def sweep(self) -> None:
        """Let go of what requests held that have ended or were retracted."""
        ended = [_has_ended(*one) for one in self._held]
        for (_, pruned), has_ended in zip(self._held, ended, strict=True):
            if has_ended:
                let_go(pruned)
        self._held = [one for one, has_ended in zip(self._held, ended, strict=True) if not has_ended]

    @property
    def n_bytes(self) -> int:
        """Held at the moment."""
        return sum(pruned.n_bytes for _, pruned in self._held)


def let_go(pruned: Pruned) -> None:
    """Nothing of it may return."""
    for one in pruned.parked:
        one.clear()


def _has_ended(reference: weakref.ref, pruned: Pruned) -> bool:
    req = reference()
    return req is None or req.finished() or req.retraction_count != pruned.retractions
