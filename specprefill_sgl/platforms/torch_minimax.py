"""MiniMax-M2's norm of queries and keys in torch: SGLang 0.5.23 has Triton kernels that refuse what is not on a GPU.

Two steps, because ranks add their sums of squares in between: the norm is over all heads, of which each rank has some.
"""

import torch

from specprefill_sgl.platforms.replacement import replace


def sum_of_squares(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Of each row of [n, dim] and [n, kv_dim]: float32 [2 n], those of the queries first."""
    return torch.cat([one.float().square().sum(dim=-1) for one in (queries, keys)])


def apply_norm(
    queries: torch.Tensor,
    keys: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    sums: torch.Tensor,
    ranks: int = 1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm by the sums over all ranks, computed in float32; shapes and dtypes are kept."""
    sum_of = sums.chunk(2)
    return _scaled(queries, query_weight, sum_of[0], ranks, eps), _scaled(keys, key_weight, sum_of[1], ranks, eps)


def _scaled(rows: torch.Tensor, weight: torch.Tensor, sums: torch.Tensor, ranks: int, eps: float) -> torch.Tensor:
    inverse = torch.rsqrt(sums / (rows.shape[-1] * ranks) + eps)
    return (rows.float() * inverse[:, None] * weight.float()).to(rows.dtype)


def register() -> None:
    """Serve MiniMax-M2 with these, in this process."""
    replace("sglang.srt.models.minimax_m2", rms_sumsq_serial=sum_of_squares, rms_apply_serial=apply_norm)
