"""Selection of several prompts on their device equals NumPy's of each on its own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specprefill_sgl.selection.choose import best_chunks, choose
from tests.support.device import DEVICE


@given(data=st.data())
def test_selection_is_that_of_numpy_ties_included(data):
    few_values = st.sampled_from([0.0, 0.25, 0.5, 1e-9])
    forced, free, scores = [], [], []
    for chunks in data.draw(st.lists(st.integers(1, 100), min_size=1, max_size=5)):
        forced.append(np.array([*data.draw(st.lists(st.booleans(), min_size=chunks - 1, max_size=chunks - 1)), True]))
        free.append(data.draw(st.integers(0, chunks - int(forced[-1].sum()))))
        scores.append(np.array(data.draw(st.lists(few_values, min_size=chunks, max_size=chunks)), dtype=np.float32))
    found = choose([torch.from_numpy(one).to(DEVICE) for one in scores], forced, free)
    for got, *own in zip(found, scores, forced, free, strict=True):
        assert got.chunks.dtype == np.int64
        assert got.chunks.tolist() == best_chunks(*own).tolist()
        assert got.scores.tolist() == own[0].tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_refused(value):
    scores = [torch.tensor([0.5, 0.25]), torch.tensor([0.0, 1.0, value])]
    with pytest.raises(ValueError, match="not finite"):
        choose(scores, [np.array([False, True]), np.array([False, False, True])], [1, 1])
