"""Selectors to compare with: what a chunk is worth without a draft. Each gives importances [prompt_tokens]; the highest stay.

They stand where the draft's votes stand, so that chunks, budget, forced chunks and everything after are the product's own.
"""

import hashlib
from collections.abc import Callable

import numpy as np

_K1, _B = 1.5, 0.75  # BM25's usual constants


def random_chunks(ids: np.ndarray, chunk_size: int) -> np.ndarray:
    """A random order of chunks, the same for the same prompt."""
    seed = int.from_bytes(hashlib.sha256(ids.tobytes()).digest()[:8])
    return _per_chunk(np.random.default_rng(seed).random(-(-len(ids) // chunk_size)), len(ids), chunk_size)


def first_and_last(ids: np.ndarray, chunk_size: int) -> np.ndarray:
    """The beginning and the end before the middle, in turn, as StreamingLLM keeps attention sinks and a recent window."""
    places = np.arange(-(-len(ids) // chunk_size))
    return _per_chunk(-np.minimum(places, places[::-1]).astype(float), len(ids), chunk_size)


def bm25(ids: np.ndarray, chunk_size: int) -> np.ndarray:
    """Okapi BM25 of every chunk against the last chunk, which holds the question; terms are token ids."""
    starts = range(0, len(ids), chunk_size)
    chunks = [ids[start : start + chunk_size] for start in starts]
    query = np.unique(np.concatenate(chunks[-2:])[-chunk_size:])
    counts = np.array([[np.count_nonzero(chunk == term) for term in query] for chunk in chunks], dtype=float)
    holding = (counts > 0).sum(axis=0)
    weight = np.log(1 + (len(chunks) - holding + 0.5) / (holding + 0.5))
    lengths = np.array([len(chunk) for chunk in chunks])[:, None]
    frequency = counts * (_K1 + 1) / (counts + _K1 * (1 - _B + _B * lengths / lengths.mean()))
    return _per_chunk(frequency @ weight, len(ids), chunk_size)


def _per_chunk(values: np.ndarray, n_tokens: int, chunk_size: int) -> np.ndarray:
    return np.repeat(values, chunk_size)[:n_tokens]


CONTROLS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "random": random_chunks,
    "first_and_last": first_and_last,
    "bm25": bm25,
}
