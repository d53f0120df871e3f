"""Skip-coded token ids: a kept token carries the number of original positions jumped over before it (docs/how-it-works.md, 5).

`code = token | (skip << 32)`; a token that follows its predecessor directly is its plain id, so two coded prefixes are
equal exactly when their (token, position) sequences are, which is exactly when KV may be shared.

A token whose KV is predicted has one more bit: such KV is nobody's but the method's that predicts it.
"""

from array import array
from collections.abc import Sequence

import numpy as np

TOKEN_MASK = 0xFFFFFFFF
PREDICTED = 1 << 62  # ids stay non-negative
_SKIP_BITS = 30
_SKIP_MASK = (1 << _SKIP_BITS) - 1
_SKIP_SIGN = 1 << (_SKIP_BITS - 1)


def as_numpy(ids: array | Sequence[int]) -> np.ndarray:
    """Token ids as int64 [tokens]; no copy for an `array('q')`."""
    return np.frombuffer(ids, dtype=np.int64) if isinstance(ids, array) and len(ids) else np.asarray(ids, np.int64)


def encode(ids: array | Sequence[int], positions: np.ndarray, predicted: int = 0) -> array:
    """Kept tokens with their skips.

    Parameters
    ----------
    ids : int64 [prompt_tokens]
        The whole prompt, ids in [0, 2**32).
    positions : int64 [kept_tokens]
        Original positions in the order they are prefilled.
    predicted : int
        So many at the start have predicted KV.

    Returns
    -------
    array('q') [kept_tokens]
        Non-negative codes.
    """
    skips = np.diff(positions, prepend=-1) - 1
    if skips.size and not (skips.min() >= -_SKIP_SIGN and skips.max() < _SKIP_SIGN):
        raise ValueError(f"a skip does not fit in {_SKIP_BITS} bits")
    codes = as_numpy(ids)[positions] | ((skips & _SKIP_MASK) << 32)
    codes[:predicted] |= PREDICTED
    coded = array("q")
    coded.frombytes(codes.astype(np.int64).tobytes())
    return coded


def offsets_of(positions: np.ndarray) -> np.ndarray:
    """Original position minus KV index, int64 [kept_tokens]."""
    return positions - np.arange(len(positions))


def plain(codes: array) -> array:
    """The tokens' ids."""
    ids = array("q")
    ids.frombytes((as_numpy(codes) & TOKEN_MASK).tobytes())
    return ids
