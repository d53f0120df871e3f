"""Skip codes: a round trip, and equality of codes exactly where (token, position) sequences are equal."""

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprefill_sgl.request.skipcode import TOKEN_MASK, encode, offsets_of

tokens = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=200)


def decode(codes):
    """Token ids and original positions; skips are signed numbers of 30 bits above the token's 32."""
    ids, positions, before = [], [], -1
    for code in codes:
        skip = (code >> 32) & (2**30 - 1)
        before += 1 + (skip - 2**30 if skip >= 2**29 else skip)
        ids.append(code & TOKEN_MASK)
        positions.append(before)
    return ids, positions


@st.composite
def kept_prompts(draw):
    ids = draw(tokens)
    kept = draw(st.sets(st.integers(0, len(ids) - 1), min_size=1))
    return array("q", ids), np.array(sorted(kept), dtype=np.int64)


@given(kept_prompts())
def test_round_trip(prompt):
    ids, positions = prompt
    codes = encode(ids, positions)
    plain, decoded = decode(codes)
    assert all(code >= 0 for code in codes)
    assert plain == [ids[p] for p in positions] == [code & TOKEN_MASK for code in codes]
    assert decoded == positions.tolist()
    assert (np.arange(len(codes)) + offsets_of(positions)).tolist() == positions.tolist()


@given(kept_prompts(), kept_prompts())
def test_prefixes_are_equal_exactly_where_tokens_and_positions_are(one, other):
    (ids_a, kept_a), (ids_b, kept_b) = one, other
    a, b = encode(ids_a, kept_a), encode(ids_b, kept_b)
    for length in range(1, min(len(a), len(b)) + 1):
        same = [(ids_a[p], p) for p in kept_a[:length]] == [(ids_b[p], p) for p in kept_b[:length]]
        assert (a[:length] == b[:length]) == same


def test_steps_back_survive_the_round_trip():
    ids, positions = array("q", range(100, 110)), np.array([0, 1, 8, 3, 9])
    plain, decoded = decode(encode(ids, positions))
    assert plain == [100, 101, 108, 103, 109]
    assert decoded == [0, 1, 8, 3, 9]


def test_whole_prompt_is_its_plain_ids():
    ids = array("q", [5, 6, 7])
    assert encode(ids, np.arange(3)) == ids


def test_a_skip_beyond_30_bits_is_refused():
    with pytest.raises(ValueError, match="30 bits"):
        encode(np.zeros(1, np.int64), np.array([2**29 + 1]))


@given(kept_prompts(), kept_prompts(), st.integers(0, 200), st.integers(0, 200))
def test_a_predicted_prefix_is_nobody_elses(one, other, predicted_a, predicted_b):
    """Of prompts that are the same or not: codes agree no further than tokens, positions, and whose KV it is."""
    for (ids_a, kept_a), (ids_b, kept_b) in ((one, other), (one, one)):
        a, b = encode(ids_a, kept_a, predicted_a), encode(ids_b, kept_b, predicted_b)
        assert min(a) >= 0
        assert decode(a)[1] == kept_a.tolist()
        wanted = [(ids_a[p], p, at < predicted_a) for at, p in enumerate(kept_a)]
        found = [(ids_b[p], p, at < predicted_b) for at, p in enumerate(kept_b)]
        for length in range(1, min(len(a), len(b)) + 1):
            assert (a[:length] == b[:length]) == (wanted[:length] == found[:length])
