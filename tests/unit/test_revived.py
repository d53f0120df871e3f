"""What returns of a prompt: chunks that stand out and are not kept, before the last token, what was kept in its order."""

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.selection.choose import Chosen
from specprefill_sgl.selection.rule import Rule
from specprefill_sgl.stage.selecting import revived

TOKENS, SIZE = 46, 4  # twelve chunks, the last of two tokens


def _prompt(kept, most=3):
    rule = Rule(chunk_size=SIZE)
    return Prompt(
        ids=array("q", range(TOKENS)), keep_ratio=0.2, rule=rule, kept=np.array(kept), answer=array("q", [7]), most_revived=most
    )


def _revived(kept, scores, chosen, most=3):
    prompt = _prompt(kept, most)
    found = Chosen(np.array(sorted(chosen)), np.array(scores, dtype=np.float32))
    return revived(prompt, prompt.cut, found.chunks, found.scores).tolist()


LAST = [44, 45]


@pytest.mark.parametrize(
    ("chosen", "high", "most", "returned"),
    [
        ((2, 11), {2: 9.0}, 3, [8, 9, 10, 11]),
        ((0, 11), {0: 9.0}, 3, []),  # kept already
        ((2, 11), {2: 1.0}, 3, []),  # does not stand out
        ((11,), {2: 9.0}, 3, []),  # not among the best
        ((2, 3, 5), {2: 9.0, 3: 7.0, 5: 8.0}, 2, [8, 9, 10, 11, 20, 21, 22, 23]),  # the best two, in the order of the text
    ],
)
def test_what_returns(chosen, high, most, returned):
    scores = [high.get(chunk, 0.3) for chunk in range(12)]
    assert _revived([0, 1, 2, 3, *LAST], scores, chosen, most) == [0, 1, 2, 3, 44, *returned, 45]


@given(st.data())
def test_nothing_is_kept_twice_or_lost(data):
    chunks = st.sets(st.integers(0, 10), max_size=6)
    earlier = [at for chunk in data.draw(chunks) for at in range(chunk * SIZE, chunk * SIZE + SIZE)]
    kept = [*data.draw(st.permutations(earlier)), *LAST]  # as after earlier turns: in any order
    scores = data.draw(st.lists(st.floats(0, 9, width=32), min_size=12, max_size=12))
    most = data.draw(st.integers(1, 4))
    found = _revived(kept, scores, data.draw(chunks) | {11}, most)
    assert found[: len(kept) - 1] == kept[:-1]
    assert found[-1] == TOKENS - 1
    assert len(set(found)) == len(found) <= len(kept) + most * SIZE
