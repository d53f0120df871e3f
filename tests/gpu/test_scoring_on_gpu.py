"""Scoring on a CUDA device equals scoring on the CPU."""

import pytest
import torch

from specprefill_sgl.scoring.torch_scoring import chunk_scores, layer_votes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("cap", [0.0, 30.0])
def test_cuda_equals_cpu(cap):
    torch.manual_seed(0)
    queries, keys = torch.randn(8, 32, 128).bfloat16(), torch.randn(5000, 8, 128).bfloat16()
    scores = []
    for device in ("cpu", "cuda"):
        votes = layer_votes(queries.to(device), keys.to(device), scaling=128**-0.5, logit_cap=cap, pool_kernel=13)
        scores.append(chunk_scores(votes, 32).cpu())
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-8)
