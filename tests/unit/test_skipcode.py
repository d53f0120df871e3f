"""Skip codes: a round trip, and equality of codes exactly where (token, position) sequences are equal."""

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprefill_sgl.request.skipcode import TOKEN_MASK, encode, offsets_of

tokens = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=200)


def decode(codes):
    """Token ids and original positions; skips are signed numbers of 31 bits above the token's 32."""
    ids, positions, before = [], [], -1
    for code in codes:
        skip = code >> 32
        before += 1 + (skip - 2**31 if skip >= 2**30 else skip)
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


def test_a_skip_beyond_31_bits_is_refused():
    with pytest.raises(ValueError, match="31 bits"):
        encode(np.zeros(1, np.int64), np.array([2**31]))
