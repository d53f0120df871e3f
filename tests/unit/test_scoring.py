"""Scoring against a direct transcription of algorithm.md, 2 to 4, in float64."""

import math

import pytest
import torch

from specprefill_sgl.scoring.torch_scoring import chunk_scores, layer_votes, max_votes


def transcribed(queries, keys, scaling, cap, kernel):
    """a[h, t, j], pooled with zero padding counted, max over h: one scalar at a time."""
    votes, heads, _ = queries.shape
    n, kv_heads, _ = keys.shape
    best = torch.zeros(votes, n, dtype=torch.float64)
    for h in range(heads):
        k = keys[:, h // (heads // kv_heads)].double()
        for t in range(votes):
            logits = [float(k[j] @ queries[t, h].double()) * scaling for j in range(n)]
            if cap:
                logits = [cap * math.tanh(x / cap) for x in logits]
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            a = [w / sum(weights) for w in weights]
            for j in range(n):
                window = [a[i] for i in range(j - kernel // 2, j + kernel // 2 + 1) if 0 <= i < n]
                best[t, j] = max(best[t, j], sum(window) / kernel)
    return best


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 8), (6, 2, 16), (2, 1, 64)])
@pytest.mark.parametrize(("n", "kernel", "cap"), [(1, 13, 0.0), (7, 13, 0.0), (70, 13, 0.0), (70, 1, 5.0), (70, 5, 0.7)])
def test_matches_the_transcription(heads, kv_heads, dim, n, kernel, cap):
    torch.manual_seed(n * heads + kernel)
    queries, keys = torch.randn(3, heads, dim) * 2, torch.randn(n, kv_heads, dim)
    got = layer_votes(queries, keys, scaling=dim**-0.5, logit_cap=cap, pool_kernel=kernel)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), transcribed(queries, keys, dim**-0.5, cap, kernel), rtol=1e-5, atol=1e-7)


def test_max_over_layers_then_mean_over_votes_then_mean_over_chunks():
    one = torch.tensor([[1.0, 0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 2.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 2.0]])
    assert chunk_scores(max_votes([one, other]), 2).tolist() == [1.0, 1.5, 2.0]


def test_bfloat16_keys_are_scored_in_float32():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 4, 32).bfloat16(), torch.randn(300, 2, 32).bfloat16()
    got = layer_votes(queries, keys, scaling=0.2, logit_cap=0.0, pool_kernel=13)
    want = layer_votes(queries.float(), keys.float(), scaling=0.2, logit_cap=0.0, pool_kernel=13)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_no_voting_layer_is_an_error():
    with pytest.raises(ValueError, match="no attention layer"):
        max_votes([])
