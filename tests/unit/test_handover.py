"""What travels from a prefill to a decode server: it says the same there, or nothing."""

import numpy as np
import pytest

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.observability.reply import reply_object
from specprefill_sgl.request import eligibility
from specprefill_sgl.request.backlog import Keep
from specprefill_sgl.request.handover import WORDS, marked, pack, unpack
from specprefill_sgl.request.options import RequestOptions
from specprefill_sgl.request.prompts import Outcome
from specprefill_sgl.request.state import PromptState

LISTS = RequestOptions(return_positions=True, return_scores=True, return_votes=True)
KEEP = Keep(0.2, "server")


def _state(outcome, options=LISTS, keep=KEEP):
    state = PromptState(options, 4000, SpecPrefillConfig().rule, keep, "draft")
    if outcome is not None:
        state.decide(outcome)
    return state


def _there(state, options=LISTS):
    """The state of the same request on the other server."""
    handed = unpack(pack(state))
    there = PromptState(options, state.prompt_tokens, state.rule, handed.keep, state.method)
    there.take_over(handed.outcome, handed.kept_tokens)
    return there


FIGURES = {"draft_ms": 12.5, "score_ms": 3.25, "select_ms": 0.5, "tokenize_ms": 1.0, "draft_tokens": 4100}
OUTCOMES = [
    Outcome(positions=np.arange(0, 4000, 5), draft_cached_tokens=512, scores=np.ones(3), **FIGURES),
    Outcome(positions=np.arange(4000)),
    *(Outcome(positions=None, reason=reason) for reason in eligibility.REASONS),
]


@pytest.mark.parametrize("keep", [Keep(0.5, "server"), Keep(0.25, "request"), Keep(0.125, "backlog")])
@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda one: one.reason or "applied")
def test_the_reply_is_the_same_but_for_lists(outcome, keep):
    here = _state(outcome, keep=keep)
    said, known = reply_object(_there(here), final=True), reply_object(here, final=True)
    lists = {"positions", "scores", "votes"}
    assert {name: said[name] for name in lists} == dict.fromkeys(lists)
    assert said == {name: value for name, value in known.items() if name != "chunk_size"} | dict.fromkeys(lists)


def test_what_follows_is_offset_alike():
    here = _state(OUTCOMES[0])
    there = _there(here)
    assert there.is_sparse
    assert there.delta == here.delta == 3200
    assert list(there.span_offsets(798, 4)) == [3200] * 4
    assert not _there(_state(OUTCOMES[1])).is_sparse


def test_lists_that_nobody_asked_for_are_not_there():
    assert not {"positions", "scores", "votes"} & reply_object(_there(_state(OUTCOMES[0]), RequestOptions()), final=True).keys()


@pytest.mark.parametrize("state", [None, _state(None)], ids=["unseen", "undecided"])
def test_nothing_is_said_of_a_request_on_which_nothing_was_decided(state):
    assert pack(state) == [0] * WORDS
    assert unpack(pack(state)) is None


def test_words_of_another_release_say_nothing():
    words = pack(_state(OUTCOMES[0]))
    assert unpack([words[0] + 1, *words[1:]]) is None


def test_words_fit_sglangs_row():
    assert all(-(1 << 31) <= word < 1 << 31 for outcome in OUTCOMES for word in pack(_state(outcome)))


def test_every_reason_travels():
    named = {value for name, value in vars(eligibility).items() if name.isupper() and isinstance(value, str)}
    assert set(eligibility.REASONS) == named
    assert len(eligibility.REASONS) == len(named)


@pytest.mark.parametrize("room", [1, 2**31, 2**62 - 1, 2**63 - 1])
def test_a_marked_number_is_another_one(room):
    assert marked(room) != room
    assert 0 < marked(room) < 2**63
    assert marked(marked(room)) == room
