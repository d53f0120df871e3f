"""`tune`: how answers are compared, and which keep ratio is proposed."""

import numpy as np
import pytest

from specprefill_sgl.cli import tuning
from specprefill_sgl.cli.tuning import Answer, Row

DENSE = Answer([5, 6, 7], [{5: -0.1, 9: -3.0}, {6: -0.2, 8: -2.0}, {7: -0.3}], 2.0, {"keep_ratio": 1.0})


def _sparse(tokens, logprobs):
    return Answer(tokens, logprobs, 0.5, {"keep_ratio": 0.2})


def test_the_same_answer():
    row = tuning.compared(3, 0.2, DENSE, _sparse([5, 6, 7], [{5: -0.3}, {6: -0.2}, {7: -0.7}]))
    assert (row.prompt, row.keep_ratio, row.kept, row.same, row.speedup) == (3, 0.2, 0.2, 1.0, 4.0)
    assert row.loss == pytest.approx((0.2 + 0.0 + 0.4) / 3)


def test_up_to_the_first_difference():
    """What the dense answer's token costs there is counted; what follows says nothing."""
    row = tuning.compared(0, 0.2, DENSE, _sparse([5, 8, 7], [{5: -0.1}, {8: -0.5, 6: -1.2}, {7: -9.0}]))
    assert row.same == pytest.approx(1 / 3)
    assert row.loss == pytest.approx((0.0 + 1.0) / 2)


def test_a_token_that_is_not_among_the_best_costs_as_the_last_of_them():
    row = tuning.compared(0, 0.2, DENSE, _sparse([9, 6, 7], [{9: -0.1, 4: -5.1}, {6: -0.2}, {7: -0.3}]))
    assert row.same == 0.0
    assert row.loss == pytest.approx(5.0)


def test_an_answer_that_ends_early_is_another_one():
    row = tuning.compared(0, 0.2, DENSE, _sparse([5, 6], [{5: -0.1}, {6: -0.2}]))
    assert row.same == pytest.approx(2 / 3)


def _asked(**same):
    """Agreement of two prompts: dense asked again, then at 0.1 and 0.2."""
    ratios = {"again": None, "at_01": 0.1, "at_02": 0.2}
    rows = [Row(number, ratios[name], 0.2, value, 0.1, 2.0) for name, both in same.items() for number, value in enumerate(both)]
    return tuning.Asked(rows, {})


@pytest.mark.parametrize(
    ("asked", "proposed"),
    [
        ({"again": (1.0, 1.0), "at_01": (1.0, 0.9), "at_02": (1.0, 1.0)}, 0.1),
        ({"again": (1.0, 1.0), "at_01": (0.9, 0.5), "at_02": (1.0, 0.9)}, 0.2),
        ({"again": (1.0, 1.0), "at_01": (0.2, 0.5), "at_02": (0.4, 0.9)}, None),
        ({"again": (0.6, 0.8), "at_01": (0.6, 0.7), "at_02": (1.0, 1.0)}, 0.1),  # no better than dense with itself is asked for
    ],
)
def test_proposes_the_smallest_that_agrees_about_as_well_as_dense_does_with_itself(asked, proposed):
    found = _asked(**asked).proposed(0.1)
    assert (found and found.keep_ratio) == proposed


def test_names_the_prompts_that_changed_most():
    assert _asked(again=(1.0, 1.0), at_01=(0.9, 0.5)).changed_most(0.1) == [1, 0]
    assert _asked(again=(1.0, 1.0), at_01=(1.0, 0.5)).changed_most(0.1) == [1]


def test_intervals():
    mean, low, high = tuning.interval([0.0, 1.0] * 20, np.mean)
    assert mean == 0.5
    assert 0.3 < low < 0.5 < high < 0.7
    assert tuning.interval([1.0, 1.0], np.mean) == (1.0, 1.0, 1.0)
