"""Scoring in plain torch against a direct transcription of docs/selection.md, 2 to 4, in float64."""

import pytest
import torch

from specprefill_sgl.scoring.torch_scoring import layer_votes, max_votes
from specprefill_sgl.selection.importance import chunk_scores
from specprefill_sgl.selection.rule import Rule
from tests.support.transcription import transcribed


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 8), (6, 2, 16), (2, 1, 64)])
@pytest.mark.parametrize(("n", "kernel", "cap"), [(1, 13, 0.0), (7, 13, 0.0), (70, 13, 0.0), (70, 1, 5.0), (70, 5, 0.7)])
def test_matches_the_transcription(heads, kv_heads, dim, n, kernel, cap):
    torch.manual_seed(n * heads + kernel)
    queries, keys = torch.randn(3, heads, dim) * 2, torch.randn(n, kv_heads, dim)
    got = layer_votes(queries, keys, scaling=dim**-0.5, logit_cap=cap, pool_kernel=kernel)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), transcribed(queries, keys, dim**-0.5, cap, kernel), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(("n", "cap"), [(1, 0.0), (70, 0.0), (70, 0.7)])
def test_sinks_match_the_transcription(heads, kv_heads, n, cap):
    torch.manual_seed(n * heads)
    queries, keys, sinks = torch.randn(3, heads, 16) * 2, torch.randn(n, kv_heads, 16), torch.randn(heads) * 3
    got = layer_votes(queries, keys, scaling=0.25, logit_cap=cap, pool_kernel=13, sinks=sinks)
    torch.testing.assert_close(got.double(), transcribed(queries, keys, 0.25, cap, 13, sinks), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chosen", [None, [1], [4, 0, 5]])
@pytest.mark.parametrize("counted", [None, (4, 50), (0, 70), (30, 30)])
def test_hidden_futures_uncounted_tokens_and_chosen_heads_match_the_transcription(counted, chosen):
    torch.manual_seed(1)
    queries, keys, sinks = torch.randn(4, 6, 16) * 2, torch.randn(70, 2, 16), torch.randn(6)
    visible = [1, 40, 69, 70]
    got = layer_votes(
        *(queries, keys), scaling=0.25, logit_cap=2.0, pool_kernel=13, sinks=sinks,
        visible=torch.tensor(visible), counted=counted, heads=chosen,
    )  # fmt: skip
    want = transcribed(queries, keys, 0.25, 2.0, 13, sinks, visible=visible, counted=counted, chosen=chosen)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)


def test_a_head_that_parks_its_mass_on_its_sink_has_no_say():
    """The first head alone knows the fourth token, but nearly all of its mass is the sink's; the second is indifferent."""
    queries, keys = torch.tensor([[[8.0], [0.0]]]), torch.zeros(6, 1, 1)
    keys[3] = 1
    sinks = torch.tensor([20.0, -20.0])
    got = layer_votes(queries, keys, scaling=1.0, logit_cap=0.0, pool_kernel=1, sinks=sinks)
    torch.testing.assert_close(got, torch.full((1, 6), 1 / 6))


def test_max_over_layers_then_mean_over_votes_then_mean_over_chunks():
    one = torch.tensor([[1.0, 0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 2.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 2.0]])
    assert chunk_scores(max_votes([one, other]), 0, Rule(chunk_size=2)).tolist() == [1.0, 1.5, 2.0]


def test_bfloat16_keys_are_scored_in_float32():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 4, 32).bfloat16(), torch.randn(300, 2, 32).bfloat16()
    got = layer_votes(queries, keys, scaling=0.2, logit_cap=0.0, pool_kernel=13)
    want = layer_votes(queries.float(), keys.float(), scaling=0.2, logit_cap=0.0, pool_kernel=13)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_no_voting_layer_is_an_error():
    with pytest.raises(ValueError, match="no attention layer"):
        max_votes([])
