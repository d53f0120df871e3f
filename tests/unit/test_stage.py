"""Whatever a method fails at, its group is dense, the server lives on, and the log says what becomes of the requests."""

from array import array
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.models.ranks import Ranks
from specprefill_sgl.request.eligibility import DRAFT_ERROR
from specprefill_sgl.request.prompts import Cast, Prompt
from specprefill_sgl.stage.reconsidering import Reconsidered
from specprefill_sgl.stage.stage import Stage

TOKENS = 400


class _Method:
    """Reads nothing and votes for all tokens alike; fails at what it is told to. In place of a model, of our own protocol."""

    name, described, chunk_tokens, max_tokens, longest = "draft", "the draft", 2048, 4096, 4096
    device, has_read = torch.device("cpu"), False

    def __init__(self, fails: str = ""):
        self._fails, self.calls = fails, []

    def begin(self, prompts):
        self.cached = [len(prompt.ids) for prompt in prompts]
        return self

    def step(self):
        return self._did("step", True)

    def votes(self):
        return self._did("votes", [Cast(torch.ones(1, TOKENS), 0, [7], [TOKENS - 1]) for _ in self.cached])

    def joined(self, cast):
        return self._did("joined", cast)

    def release(self):
        self._did("release", None)

    def clear(self):
        self._did("clear", None)

    def tokens_needed(self, prompt):
        return len(prompt.ids)

    def _did(self, what, result):
        self.calls.append(what)
        if what == self._fails:
            raise RuntimeError("injected")
        return result


def _stage(method):
    config = SpecPrefillConfig(draft_model_path="d")
    ranks = Ranks(SimpleNamespace(world_size=1, rank_in_group=0))
    return Stage(config, {"draft": method}, ranks, window=0, after_snapshot=0)


def _prompts(count, **more):
    return [Prompt(ids=array("q", range(TOKENS)), keep_ratio=0.2, **more) for _ in range(count)]


@pytest.mark.parametrize("fails", ["step", "votes", "joined"])
def test_a_group_that_fails_is_dense_and_its_slots_are_free(caplog, fails):
    method = _Method(fails)
    stage = _stage(method)
    stage.begin(_prompts(2))
    outcomes = stage.advance()
    assert [(one.positions, one.reason) for one in outcomes] == [(None, DRAFT_ERROR)] * 2
    assert not stage.is_drafting
    assert method.calls[-1] == "clear"
    assert "2 prompts are prefilled dense." in caplog.text


def test_every_prompts_votes_are_joined_though_one_fails():
    """Each is a collective that the other ranks take part in."""
    method = _Method("joined")
    stage = _stage(method)
    stage.begin(_prompts(3))
    stage.advance()
    assert method.calls.count("joined") == 3


@pytest.mark.parametrize("fails", ["step", "joined"])
def test_where_an_answer_was_asked_nothing_returns_and_nothing_is_dense(caplog, fails):
    stage = _stage(_Method(fails))
    found = stage.reconsider(_prompts(2, kept=np.arange(80), answer=array("q", [7]), fresh=1))
    assert found == [Reconsidered("evicted")] * 2
    assert "to 2 running requests nothing more returns." in caplog.text
    assert "dense" not in caplog.text
