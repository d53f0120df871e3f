"""What a speculative draft reads behind a chunk of a sparse prompt: the plain id, for which SGLang alone has none."""

from array import array
from types import SimpleNamespace

import numpy as np
import pytest
from sglang.srt.managers.schedule_batch import _compute_chunked_req_next_prompt_token as original

from specprefill_sgl.hooks.model import plain_next_token
from specprefill_sgl.request import skipcode
from specprefill_sgl.request.prompts import Outcome
from specprefill_sgl.request.state import PromptState, attach

VOCABULARY = 512
IDS, KEPT = array("q", range(100, 140)), np.array([0, 1, 20, 21, 22, 39])


def _chunked(end, *, sparse):
    req = SimpleNamespace(origin_input_ids=skipcode.encode(IDS, KEPT) if sparse else IDS, extend_end=end)
    state = PromptState(None, len(IDS), None, None, "draft")
    state.decide(Outcome(positions=KEPT if sparse else np.arange(len(IDS))))
    attach(req, state)
    return req


@pytest.mark.parametrize("end", range(1, 6))
def test_of_a_sparse_prompt(end):
    req = _chunked(end, sparse=True)
    assert plain_next_token(original, req, VOCABULARY) == IDS[KEPT[end]]


def test_a_coded_id_is_what_sglang_takes_for_none():
    assert original(_chunked(2, sparse=True), VOCABULARY) is None


@pytest.mark.parametrize("sparse", [True, False])
def test_behind_the_last_chunk_there_is_none(sparse):
    req = _chunked(len(KEPT) if sparse else len(IDS), sparse=sparse)
    assert plain_next_token(original, req, VOCABULARY) is None


def test_of_a_dense_prompt_and_of_none():
    assert plain_next_token(original, _chunked(2, sparse=False), VOCABULARY) == IDS[2]
    assert plain_next_token(original, None, VOCABULARY) is None
