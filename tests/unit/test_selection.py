"""Selection: budget kept, last token kept, protected spans kept, ascending, ties to the lower index."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprefill_sgl.selection import chunk_positions, forced_chunks, keeps_everything, select_chunks, window_tail


@st.composite
def cases(draw):
    n_tokens = draw(st.integers(1, 3000))
    chunk_size = draw(st.integers(1, 64))
    keep_ratio = draw(st.floats(0.001, 1.0))
    ends = draw(st.integers(0, 200)), draw(st.integers(0, 200))
    starts = draw(st.lists(st.integers(0, n_tokens - 1), max_size=3))
    protect = [(start, draw(st.integers(start + 1, n_tokens))) for start in starts]
    seed = draw(st.integers(0, 2**32 - 1))
    return n_tokens, chunk_size, keep_ratio, ends, protect, seed


@given(cases())
def test_invariants(case):
    n_tokens, size, keep_ratio, (keep_first, keep_last), protect, seed = case
    forced = forced_chunks(n_tokens, chunk_size=size, keep_first=keep_first, keep_last=keep_last, protect=protect)
    scores = np.random.default_rng(seed).random(len(forced))
    chunks = select_chunks(scores, forced, keep_ratio)
    positions = chunk_positions(chunks, n_tokens, size)
    n_chunks = math.ceil(n_tokens / size)
    budget = math.ceil(n_chunks * keep_ratio)

    assert (np.diff(positions) > 0).all()
    assert positions[0] >= 0
    assert positions[-1] == n_tokens - 1
    assert set(range(min(keep_first, n_tokens))) <= set(positions.tolist())
    assert set(range(max(n_tokens - keep_last, 0), n_tokens)) <= set(positions.tolist())
    for start, end in protect:
        assert set(range(start, end)) <= set(positions.tolist())
    free = len(chunks) - forced.sum()
    assert free == min(max(budget - forced.sum(), math.ceil(budget / 2)), n_chunks - forced.sum())
    assert len(chunks) <= max(budget, forced.sum() + math.ceil(budget / 2))
    dropped = np.setdiff1d(np.arange(n_chunks), chunks)
    chosen = chunks[~forced[chunks]]
    if len(dropped) and len(chosen):
        assert scores[chosen].min() >= scores[dropped].max()
    assert keeps_everything(forced, keep_ratio) == (len(chunks) == n_chunks)


@given(st.integers(1, 500), st.integers(1, 64))
def test_keep_ratio_one_keeps_every_token(n_tokens, size):
    forced = forced_chunks(n_tokens, chunk_size=size)
    chunks = select_chunks(np.zeros(len(forced)), forced, 1.0)
    assert chunk_positions(chunks, n_tokens, size).tolist() == list(range(n_tokens))


@given(st.integers(1, 3000), st.integers(0, 1500), st.integers(1, 64), st.floats(0.001, 1.0))
def test_a_windows_tail_leaves_the_keep_ratio_as_it_is(n_tokens, window, size, keep_ratio):
    """It is as long as the window, or else one chunk more would exceed half of the budget."""
    tail = window_tail(n_tokens, window=window, chunk_size=size, keep_ratio=keep_ratio)
    if n_tokens <= window:
        assert tail == 0
        return
    plain, forced = (forced_chunks(n_tokens, chunk_size=size, keep_last=last) for last in (0, tail))
    n_chunks, budget = len(plain), math.ceil(len(plain) * keep_ratio)
    zeros = np.zeros(n_chunks)
    assert len(select_chunks(zeros, forced, keep_ratio)) == len(select_chunks(zeros, plain, keep_ratio))
    assert forced.sum() <= max(budget // 2, 1)
    if tail < window:
        assert forced_chunks(n_tokens, chunk_size=size, keep_last=tail + 1).sum() > budget // 2


@pytest.mark.parametrize(
    ("window", "keep_ratio", "tail"),
    [
        (127, 0.2, 127),  # 4 chunks of the 10 that half of the budget is
        (1023, 0.2, 320 - 7),  # the last chunk has 25 tokens
        (1023, 0.01, 0),  # a budget of one chunk, the last
        (3192, 0.2, 320 - 7),
        (3193, 0.2, 0),  # sees the whole prompt
        (0, 0.2, 0),
    ],
)
def test_a_windows_tail(window, keep_ratio, tail):
    assert window_tail(3193, window=window, chunk_size=32, keep_ratio=keep_ratio) == tail


def test_ties_go_to_the_lower_index():
    forced = forced_chunks(320, chunk_size=32)
    assert select_chunks(np.ones(10), forced, 0.4).tolist() == [0, 1, 2, 9]


def test_protected_ends_do_not_consume_the_budget():
    """A shipped bug elsewhere: protected spans ate the budget and dropped the document."""
    forced = forced_chunks(3200, chunk_size=32, protect=[(0, 320)])
    scores = np.zeros(100)
    scores[50:60] = 1
    chunks = select_chunks(scores, forced, 0.1)
    assert set(range(10)) | {99} <= set(chunks.tolist())
    assert [c for c in chunks if 50 <= c < 60] == [50, 51, 52, 53, 54]


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        select_chunks(np.array([0.0, np.nan]), np.array([False, True]), 0.5)
