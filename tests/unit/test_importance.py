"""Votes to scores of chunks, against loops."""

import math

import msgspec
import pytest
import torch

from specprefill_sgl.selection.importance import chunk_scores
from specprefill_sgl.selection.rule import PAPER


@pytest.mark.parametrize("over", ["mean", "max"])
@pytest.mark.parametrize("tokens", [7, 8, 21])
def test_pooled_votes(tokens, over):
    torch.manual_seed(tokens)
    votes = torch.rand(5, tokens)
    rule = msgspec.structs.replace(PAPER, chunk_size=4, over_votes=over)
    best = [max(column) if over == "max" else sum(column) / 5 for column in votes.T.tolist()]
    want = [sum(best[at : at + 4]) / len(best[at : at + 4]) for at in range(0, tokens, 4)]
    assert chunk_scores(votes, 2, rule).tolist() == pytest.approx(want)


def test_in_turn_each_ranking_gets_its_next_best():
    """The window ranks chunks 2, 0, 1, the lookahead 1, 2, 0; whoever is first gets 1 / 1, then 1 / 2, 1 / 3 ..."""
    rule = msgspec.structs.replace(PAPER, chunk_size=1, window_votes="turns", over_votes="max")
    votes = torch.tensor([[0.5, 0.1, 0.9], [0.1, 0.9, 0.5]])
    assert chunk_scores(votes, 1, rule).tolist() == pytest.approx([1 / 3, 1 / 2, 1.0])


@pytest.mark.parametrize("n_window", [0, 2])
def test_turns_of_one_kind_alone_are_its_own_ranking(n_window):
    votes = torch.tensor([[0.5, 0.1, 0.9], [0.1, 0.9, 0.5]])
    turns, pooled = (msgspec.structs.replace(PAPER, chunk_size=1, window_votes=how) for how in ("turns", "pooled"))
    assert chunk_scores(votes, n_window, turns).tolist() == chunk_scores(votes, n_window, pooled).tolist()


def test_what_is_not_finite_stays_so_in_turn():
    rule = msgspec.structs.replace(PAPER, chunk_size=1, window_votes="turns")
    scores = chunk_scores(torch.tensor([[0.5, float("nan")], [0.1, 0.9]]), 1, rule).tolist()
    assert math.isnan(scores[1])
    assert math.isfinite(scores[0])
