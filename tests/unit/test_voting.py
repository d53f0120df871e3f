"""Votes of a group: kernels for all prompts together equal plain torch for each, whatever layers vote on whatever prompt."""

from types import SimpleNamespace

import pytest
import torch

from specprefill_sgl.models.private import PrivateModel
from specprefill_sgl.models.recording import Recording
from specprefill_sgl.scoring.voting import kernel_votes, own_heads, torch_votes, votes_of
from tests.support.device import DEVICE

LENGTHS, VOTES = [150, 20, 64], [3, 1, 2]
SLOTS = sum(LENGTHS) + 11


class _Draft:
    """Three layers, two on the same keys; one has sinks; the last, of a window of 100 tokens, votes on shorter prompts."""

    device = torch.device(DEVICE)

    def __init__(self, dtype):
        torch.manual_seed(0)
        self._keys = [torch.randn(SLOTS, 2, 16, device=DEVICE).to(dtype) for _ in range(3)]
        self._layers = [
            SimpleNamespace(layer_id=layer_id, scaling=scaling, logit_cap=cap)
            for layer_id, scaling, cap in ((2, 0.25, 0.0), (0, 0.3, 20.0), (0, 0.25, 0.0))
        ]
        self._sinks = {1: torch.randn(6, device=DEVICE)}

    def voting_layers(self, read_tokens):
        return dict(enumerate(self._layers[: 3 if read_tokens < 100 else 2]))

    def sinks(self, number):
        return self._sinks.get(number)

    def keys(self, layer):
        return self._keys[layer.layer_id]

    def slots(self, layer, slots):
        return (slots + 1) % SLOTS if layer.layer_id == 2 else slots


def _prompts(dtype):
    slots = torch.randperm(SLOTS, device=DEVICE)[: sum(LENGTHS)].split(LENGTHS)
    return [
        Recording(
            {layer: torch.randn(votes, 6, 16, device=DEVICE).to(dtype) for layer in range(3)},
            own,
            n_window=1,
            tokens=[0] * votes,
            positions=[len(own) // 2, *range(len(own) - 1, len(own) + votes - 2)],
        )
        for own, votes in zip(slots, VOTES, strict=True)
    ]


COUNTED = [(4, 130), (0, 20), (0, 0)]
ALL = [(0, length) for length in LENGTHS]
SOME = {0: [5, 0], 2: [1]}  # the second layer's votes do not count, the third's only where it sees the whole prompt


@pytest.mark.parametrize("heads", [None, SOME])
@pytest.mark.parametrize("counted", [ALL, COUNTED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernels_vote_as_plain_torch(dtype, counted, heads):
    draft = _Draft(dtype)
    prompts = _prompts(dtype)
    got, want = (votes(draft, prompts, 13, counted, heads) for votes in (kernel_votes, torch_votes))
    assert [tuple(one.shape) for one in got] == list(zip(VOTES, LENGTHS, strict=True))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_window_layer_counts_where_it_votes():
    """Or the comparison above could not see that it was left out everywhere."""
    draft, prompts = _Draft(torch.float32), _prompts(torch.float32)
    without = _Draft(torch.float32)
    without.voting_layers = lambda read_tokens: dict(enumerate(without._layers[:2]))
    for heads in (None, SOME):
        found = [torch_votes(one, prompts, 13, ALL, heads) for one in (draft, without)]
        assert [not torch.equal(a, b) for a, b in zip(*found, strict=True)] == [False, True, True]


@pytest.mark.parametrize("votes", [kernel_votes, torch_votes])
def test_a_layer_whose_window_ends_within_the_answer_does_not_vote(votes):
    """The window of 100 reaches over the prompt of 64 tokens, not over it and what is answered so far."""
    queries = {layer: torch.randn(2, 6, 16, device=DEVICE) for layer in range(3)}
    slots = torch.randperm(SLOTS, device=DEVICE)[:64]
    early, late = (Recording(queries, slots, n_window=2, tokens=[0, 0], positions=[end - 1, end]) for end in (80, 105))
    draft, without = _Draft(torch.float32), _Draft(torch.float32)
    without.voting_layers = lambda read_tokens: dict(enumerate(without._layers[:2]))
    with_it, without_it, found = (
        votes(model, [one], 13, [(0, 64)], None)[0] for model, one in ((draft, early), (without, early), (draft, late))
    )
    assert not torch.equal(with_it, without_it)
    torch.testing.assert_close(found, without_it)


def test_chosen_heads_are_the_sum_over_layers_of_each_alone():
    draft, prompts = _Draft(torch.float32), _prompts(torch.float32)
    whole = torch_votes(draft, prompts, 13, ALL, SOME)
    parts = [torch_votes(draft, prompts, 13, ALL, {layer: [head]}) for layer, heads in SOME.items() for head in heads]
    for one, *others in zip(whole, *parts, strict=True):
        torch.testing.assert_close(one, sum(others))


def test_each_rank_has_its_own_heads():
    heads, heads_of = ((2, 0), (0, 5), (2, 3), (1, 7)), {0: 3, 1: 4, 2: 3}.get
    assert own_heads(heads, 0, heads_of) == {2: [0]}
    assert own_heads(heads, 1, heads_of) == {0: [2], 2: [0], 1: [3]}


@pytest.mark.parametrize("votes", [kernel_votes, torch_votes])
def test_layers_without_a_chosen_head_leave_zeros(votes):
    prompts = _prompts(torch.float32)
    got = votes(_Draft(torch.float32), prompts, 13, ALL, {})
    assert [tuple(one.shape) for one in got] == list(zip(VOTES, LENGTHS, strict=True))
    assert not any(one.any() for one in got)


def test_nothing_to_vote_on():
    assert votes_of(_Draft(torch.float32), [], pool_kernel=13, counted=[], heads=None) == []


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        (((1, 0), (0, 7)), None),  # 4 heads on each of two ranks
        (((1, 0), (0, 8)), "no head 8 in attention layer 0"),
        (((2, 0),), "no head 0 in attention layer 2"),
        (((0, 1), (0, 2)), "sliding window"),
    ],
)
def test_heads_that_a_model_cannot_let_vote(heads, said):
    why = _model([63, None]).cannot_vote(heads, ranks=2)
    assert why is None if said is None else said in why


def test_heads_may_be_in_layers_that_would_not_vote_without_them():
    """Whatever the last prompt's rule was: the first one's is the server's, which may know no heads."""
    model = _model([None] * 8, part=4)
    assert list(model.voting_layers(500)) == [6, 7]
    assert model.cannot_vote(((0, 1),), ranks=2) is None


def _model(windows, part=1):
    """One whose layers, of 4 heads on each rank, have these windows; without heads one of `part` layers votes."""
    layers = {number: SimpleNamespace(tp_q_head_num=4, sliding_window_size=window) for number, window in enumerate(windows)}
    model = object.__new__(PrivateModel)
    model._capture, model._lookahead, model._part, model.context_len = SimpleNamespace(layers=layers), 8, part, 1000
    return model
