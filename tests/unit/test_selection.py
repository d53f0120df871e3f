"""Selection: budget kept, last token kept, protected spans kept, ascending, ties to the lower index."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprefill_sgl.selection.budget import affordable_return, affordable_tail, free_chunks, keeps_everything
from specprefill_sgl.selection.choose import best_chunks
from specprefill_sgl.selection.chunks import cut

UNITS = st.sampled_from(["chunks", "tokens"])


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


@given(cases(), UNITS)
def test_invariants(case, unit):
    n_tokens, size, keep_ratio, (keep_first, keep_last), protect, seed = case
    prompt = cut(n_tokens, chunk_size=size, keep_first=keep_first, keep_last=keep_last, protect=protect)
    forced, budgeted = prompt.forced, free_chunks(prompt, keep_ratio, unit)
    scores = np.random.default_rng(seed).random(len(forced))
    chunks = best_chunks(scores, forced, budgeted)
    positions = prompt.positions(chunks)
    n_chunks = math.ceil(n_tokens / size)

    assert (np.diff(positions) > 0).all()
    assert positions[0] >= 0
    assert positions[-1] == n_tokens - 1
    assert set(range(min(keep_first, n_tokens))) <= set(positions.tolist())
    assert set(range(max(n_tokens - keep_last, 0), n_tokens)) <= set(positions.tolist())
    for start, end in protect:
        assert set(range(start, end)) <= set(positions.tolist())
    free = len(chunks) - forced.sum()
    assert free == budgeted
    if unit == "chunks":
        budget = math.ceil(n_chunks * keep_ratio)
        assert free == min(max(budget - forced.sum(), math.ceil(budget / 2)), n_chunks - forced.sum())
    else:  # as many whole chunks as fit, at least one
        budget = math.ceil(n_tokens * keep_ratio)
        taken = [c for c in range(n_chunks) for _ in range(c * size, min((c + 1) * size, n_tokens)) if forced[c]]
        room = max(budget - len(taken), math.ceil(budget / 2))
        others = n_chunks - forced.sum()
        assert free == others or free * size <= room < (free + 1) * size or (free == 1 and room < size)
    dropped = np.setdiff1d(np.arange(n_chunks), chunks)
    chosen = chunks[~forced[chunks]]
    if len(dropped) and len(chosen):
        assert scores[chosen].min() >= scores[dropped].max()
    assert keeps_everything(prompt, keep_ratio, unit) == (len(chunks) == n_chunks)


@given(st.integers(20, 3000), st.integers(1, 64), st.floats(0.05, 1.0))
def test_a_budget_of_tokens_is_not_exceeded_where_it_holds_the_last_chunk_twice_and_another(n_tokens, size, keep_ratio):
    prompt = cut(n_tokens, chunk_size=size)
    budget = math.ceil(n_tokens * keep_ratio)
    last = n_tokens - (len(prompt.forced) - 1) * size
    kept = last + size * free_chunks(prompt, keep_ratio, "tokens")
    if budget >= 2 * last and budget >= last + size:
        assert budget - size < kept <= budget


@given(st.integers(1, 500), st.integers(1, 64), UNITS)
def test_keep_ratio_one_keeps_every_token(n_tokens, size, unit):
    prompt = cut(n_tokens, chunk_size=size)
    chunks = best_chunks(np.zeros(len(prompt.forced)), prompt.forced, free_chunks(prompt, 1.0, unit))
    assert prompt.positions(chunks).tolist() == list(range(n_tokens))


@given(st.integers(1, 3000), st.integers(0, 1500), st.integers(1, 64), st.floats(0.001, 1.0), UNITS, st.integers(2, 9))
def test_an_affordable_tail_leaves_the_keep_ratio_as_it_is(n_tokens, wanted, size, keep_ratio, unit, part):
    """It is as long as is wanted, or else one chunk more would exceed its part of the budget."""
    tail = affordable_tail(n_tokens, wanted, part=part, chunk_size=size, keep_ratio=keep_ratio, unit=unit)
    if n_tokens <= wanted:
        assert tail == 0
        return
    plain, forced = (cut(n_tokens, chunk_size=size, keep_last=last) for last in (0, tail))
    total = n_tokens if unit == "tokens" else len(plain.forced)
    most = math.ceil(total * keep_ratio) // part

    def cost(prompt):
        return prompt.forced_tokens if unit == "tokens" else int(prompt.forced.sum())

    assert cost(forced) <= max(most, cost(plain))
    if unit == "chunks":
        kept = [int(one.forced.sum()) + free_chunks(one, keep_ratio, unit) for one in (plain, forced)]
        assert kept[0] == kept[1]
    if tail < wanted:
        assert cost(cut(n_tokens, chunk_size=size, keep_last=tail + 1)) > most


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
    assert affordable_tail(3193, window, part=2, chunk_size=32, keep_ratio=keep_ratio, unit="chunks") == tail


@pytest.mark.parametrize(
    ("keep_ratio", "tail"),
    [
        (0.2, 48),
        (0.1, 48),
        (0.08, 5 * 8 + 1),  # 1025 tokens, a budget of 82: the last token and five chunks are half of it
        (0.05, 3 * 8 + 1),
        (0.0005, 0),  # a budget of one token
    ],
)
def test_a_tail_of_tokens(keep_ratio, tail):
    assert affordable_tail(1025, 48, part=2, chunk_size=8, keep_ratio=keep_ratio, unit="tokens") == tail


def test_the_forced_tail_ends_at_the_first_chunk_that_is_not():
    assert cut(1025, chunk_size=8, keep_last=48, protect=[(0, 100)]).forced_tail == 6 * 8 + 1
    assert cut(64, chunk_size=8, protect=[(0, 64)]).forced_tail == 64


def test_a_chunk_longer_than_the_prompt_takes_no_more_memory_than_the_prompt():
    tracemalloc.start()
    one = cut(1000, chunk_size=2**31 - 1)
    assert keeps_everything(one, 0.1, "tokens")
    assert one.positions(np.array([0])).tolist() == list(range(1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_ties_go_to_the_lower_index():
    prompt = cut(320, chunk_size=32)
    assert best_chunks(np.ones(10), prompt.forced, free_chunks(prompt, 0.4, "chunks")).tolist() == [0, 1, 2, 9]


def test_protected_ends_do_not_consume_the_budget():
    """A shipped bug elsewhere: protected spans ate the budget and dropped the document."""
    prompt = cut(3200, chunk_size=32, protect=[(0, 320)])
    scores = np.zeros(100)
    scores[50:60] = 1
    chunks = best_chunks(scores, prompt.forced, free_chunks(prompt, 0.1, "chunks"))
    assert set(range(10)) | {99} <= set(chunks.tolist())
    assert [c for c in chunks if 50 <= c < 60] == [50, 51, 52, 53, 54]


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        best_chunks(np.array([0.0, np.nan]), np.array([False, True]), 1)


@given(st.integers(1, 5000), st.integers(1, 64), st.lists(st.integers(1, 20), max_size=12))
def test_half_of_a_window_stays_however_often_something_returns(window, size, asked):
    returned = 0
    for most in asked:
        returned += min(most, affordable_return(window, returned, chunk_size=size)) * size
    assert returned <= window / 2
    assert returned + size > window // 2 or returned == sum(asked) * size
