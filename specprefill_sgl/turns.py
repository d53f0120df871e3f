"""What was kept of earlier prompts: asked again, or continued by a next turn, they are not selected from anew.

A prompt continues an earlier one if that one's whole prompt *and* its answer are its beginning. Then everything the earlier
turn prefilled is in SGLang's radix cache under the same coded ids, so keeping it costs nothing.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable

import msgspec
import numpy as np

BLOCK = 64  # tokens per link of the hash chain
MAX_TOKENS = 1 << 22  # remembered prompt tokens, 32 MiB of ids
MAX_TURNS = 4096


class Turn(msgspec.Struct, kw_only=True, eq=False):
    """One sparse prompt.

    Attributes
    ----------
    ids : array('q') [prompt_tokens]
        The prompt as it arrived.
    positions : int64 [kept_tokens]
        Kept positions in the order they are prefilled.
    settings : hashable
        What the selection depended on besides the prompt.
    answer : array('q') or None
        The generated ids, once they are final; None before, and if the request was aborted.
    """

    ids: array
    positions: np.ndarray
    settings: tuple
    answer: array | None = None


class Turns:
    """Bounded, least recently used out first. Found by a chain of hashes over blocks of ids; ids are always compared too."""

    def __init__(self, link: Callable[[int, bytes], int] = lambda before, block: hash((before, block))):
        self._link = link
        self._turns: OrderedDict[int, list[Turn]] = OrderedDict()
        self._tokens = self._count = 0

    def add(self, turn: Turn) -> None:
        """Remember a turn; an equal one is replaced."""
        chain = self._chain(turn.ids)
        if not chain:
            return
        same = self._turns.setdefault(chain[-1], [])
        for other in [one for one in same if one.ids == turn.ids and one.settings == turn.settings]:
            same.remove(other)
            self._count_out(other)
        same.append(turn)
        self._tokens += len(turn.ids)
        self._count += 1
        self._turns.move_to_end(chain[-1])
        while self._tokens > MAX_TOKENS or self._count > MAX_TURNS:
            _, oldest = self._turns.popitem(last=False)
            for one in oldest:
                self._count_out(one)

    def repeated(self, ids: array, settings: tuple) -> Turn | None:
        """The turn of the very same prompt with the same settings."""
        chain = self._chain(ids)
        found = (one for one in self._at(chain[-1]) if one.ids == ids and one.settings == settings) if chain else iter(())
        return next(found, None)

    def continued(self, ids: array) -> tuple[Turn, int] | None:
        """The longest turn whose prompt and answer begin `ids`, and how many tokens prompt and answer are together."""
        for key in reversed(self._chain(ids)):
            ends = [(_end(turn, ids), turn) for turn in self._at(key)]
            end, turn = max(ends, key=lambda pair: pair[0], default=(0, None))
            if turn is not None and end:
                return turn, end
        return None

    def clear(self) -> None:
        """Forget everything."""
        self._turns.clear()
        self._tokens = self._count = 0

    def _at(self, key: int) -> list[Turn]:
        if key in self._turns:
            self._turns.move_to_end(key)
        return self._turns.get(key, [])

    def _chain(self, ids: array) -> list[int]:
        """A hash per whole block, of everything up to its end."""
        data, width = ids.tobytes(), BLOCK * ids.itemsize
        chain, before = [], 0
        for start in range(0, len(data) - width + 1, width):
            before = self._link(before, data[start : start + width])
            chain.append(before)
        return chain

    def _count_out(self, turn: Turn) -> None:
        self._tokens -= len(turn.ids)
        self._count -= 1


def _end(turn: Turn, ids: array) -> int:
    """Where the turn's answer ends in longer `ids`; the token that ended the answer may be left out. 0: it is not there."""
    answer, start = turn.answer, len(turn.ids)
    if not answer or ids[:start] != turn.ids:
        return 0
    lengths = (n for n in (len(answer), len(answer) - 1) if n and start + n < len(ids))
    return next((start + n for n in lengths if ids[start : start + n] == answer[:n]), 0)
