"""MiniMax-M2's norm over all heads, which two ranks share."""

import torch
from torch.nn.functional import rms_norm

from specprefill_sgl.platforms.torch_minimax import apply_norm, sum_of_squares


def test_ranks_norm_their_heads_by_the_sums_of_all():
    torch.manual_seed(0)
    queries, keys = torch.randn(5, 32), 3 * torch.randn(5, 8)
    query_weight, key_weight = torch.rand(32), torch.rand(8)
    ranks = [[one.chunk(2, dim=-1)[rank] for one in (queries, keys, query_weight, key_weight)] for rank in (0, 1)]
    sums = sum(sum_of_squares(*rank[:2]) for rank in ranks)
    parts = [apply_norm(*rank, sums, 2, 1e-6) for rank in ranks]
    for got, rows, weight in zip(zip(*parts, strict=True), (queries, keys), (query_weight, key_weight), strict=True):
        torch.testing.assert_close(torch.cat(got, dim=-1), rms_norm(rows, rows.shape[-1:], weight, 1e-6))


def test_sixteen_bit_rows_are_normed_in_float32():
    torch.manual_seed(0)
    queries, keys = (300 * torch.randn(4, 16)).half(), torch.randn(4, 8).half()  # the squares overflow float16
    weights = torch.rand(16).half(), torch.rand(8).half()
    got, _ = apply_norm(queries, keys, *weights, sum_of_squares(queries, keys), 1, 1e-6)
    want = rms_norm(queries.float(), (16,), weights[0].float(), 1e-6)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got, want.half())
