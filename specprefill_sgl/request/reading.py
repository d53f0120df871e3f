"""A prompt as a reader with a tokenizer of its own reads it, and which of its tokens lie over each of the target's."""

from array import array
from typing import Any

import msgspec
import numpy as np

KEY = "spec_prefill_reading"  # in `custom_params`, from the front end to the scheduler; a client's is refused


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader reads of a prompt of the target's tokens.

    Attributes
    ----------
    ids : array('q') [read_tokens]
        Of the reader's vocabulary; at least one.
    first, past : int64 [prompt_tokens]
        The reader's tokens that overlap each of the target's, at least one; both ascend.
    unread : tuple of (start, end)
        Spans of the target's tokens that the reader does not see: nothing can vote for them, so they are kept.
    milliseconds : float
        What it took to make.
    """

    ids: array
    first: np.ndarray
    past: np.ndarray
    unread: tuple[tuple[int, int], ...] = ()
    milliseconds: float = 0.0

    def range_of(self, begin: int, end: int) -> tuple[int, int]:
        """The reader's tokens over the target's [begin, end)."""
        if begin >= end:
            return 0, 0
        return int(self.first[begin]) if begin else 0, int(self.past[end - 1])

    def position_of(self, token: int) -> int:
        """The target's token under one of the reader's; what follows the prompt stays behind it."""
        if token >= len(self.ids):
            return len(self.first) + token - len(self.ids)
        return min(int(np.searchsorted(self.past, token, side="right")), len(self.first) - 1)


class _Packed(msgspec.Struct, array_like=True, frozen=True):
    ids: bytes
    first: bytes
    past: bytes
    unread: tuple[tuple[int, int], ...]
    milliseconds: float


def pack(reading: Reading) -> bytes:
    """Of a reading, for SGLang's channels."""
    ids, first, past = (np.asarray(part, dtype=np.int32).tobytes() for part in (reading.ids, reading.first, reading.past))
    return msgspec.msgpack.encode(_Packed(ids, first, past, reading.unread, reading.milliseconds))


def unpack(custom_params: Any) -> tuple[Any, Reading | None]:
    """A request's `custom_params` without the reading, and the reading, None if there is none.

    What is none, from a front end that does not check requests, stays among the fields and is refused there.
    """
    if not isinstance(custom_params, dict) or not isinstance(packed := custom_params.get(KEY), bytes):
        return custom_params, None
    try:
        parts = msgspec.msgpack.decode(packed, type=_Packed)
    except msgspec.MsgspecError:
        return custom_params, None
    ids, first, past = (np.frombuffer(part, dtype=np.int32).astype(np.int64) for part in (parts.ids, parts.first, parts.past))
    reading = Reading(
        ids=array("q", ids.tobytes()), first=first, past=past, unread=parts.unread, milliseconds=parts.milliseconds
    )
    return {name: value for name, value in custom_params.items() if name != KEY}, reading
