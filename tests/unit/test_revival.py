"""How many chunks may return, of a request as it is."""

from types import SimpleNamespace

import numpy as np
import pytest

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.hooks import revival
from specprefill_sgl.request.backlog import Keep
from specprefill_sgl.request.options import RequestOptions
from specprefill_sgl.request.prompts import Outcome
from specprefill_sgl.request.state import PromptState
from specprefill_sgl.selection.rule import Rule


@pytest.mark.parametrize(
    ("window", "most", "chunks"),
    [
        (0, 4, [8, 8, 8]),
        (128, 4, [8, 4, 0]),
        (128, 3, [8, 5, 2]),
        (100, 9, [6, 0]),
        (15, 1, [0]),
        (5000, 8, [8, 8, 8]),
    ],
)
def test_fewer_chunks_return_at_a_time_until_a_window_bears_no_more(window, most, chunks):
    """Of eight tokens each, at most eight at a time; so many are asked for each time."""
    stage = SimpleNamespace(window=window, config=SpecPrefillConfig(draft_model_path="d"))
    state = PromptState(RequestOptions(), 5000, Rule(chunk_size=8), Keep(0.2, "server"), "draft")
    state.decide(Outcome(positions=np.arange(900)))
    found = []
    for said in range(len(chunks)):
        found.append(revival._may_return(state, stage))
        state.revive(np.arange(len(state.kept) + 8 * min(most, found[-1])), said)
    assert found == chunks


@pytest.mark.parametrize(("window", "chunks"), [(199, 12), (200, 64)])
def test_a_prompt_that_lies_in_the_window_loses_nothing_to_what_returns(window, chunks):
    stage = SimpleNamespace(window=window, config=SpecPrefillConfig(draft_model_path="d", revive_chunks=64))
    state = PromptState(RequestOptions(), 200, Rule(chunk_size=8), Keep(0.2, "server"), "draft")
    state.decide(Outcome(positions=np.arange(40)))
    assert revival._may_return(state, stage) == chunks
