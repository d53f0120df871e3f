"""Data-parallel attention on the CPU platform: what SGLang has for it is of accelerators, or asks for one.

Its collectives that fill a given tensor are operators, registered for devices only; here they are the functions behind them.
"""

import torch

from specprefill_sgl.platforms.replacement import replace


def _group(name: str):
    from sglang.srt.distributed import parallel_state

    return parallel_state._groups[name]()


def _all_gather_into_tensor(output: torch.Tensor, input: torch.Tensor, group_name: str) -> None:
    _group(group_name)._all_gather_into_tensor(output, input)


def _reduce_scatter_tensor(output: torch.Tensor, input: torch.Tensor, group_name: str) -> None:
    _group(group_name)._reduce_scatter_tensor(output, input)


def _all_reduce_in_place(tensor: torch.Tensor, group_name: str) -> None:
    _group(group_name)._all_reduce_in_place(tensor)


def register() -> None:
    """Serve them in this process."""
    from sglang.srt.layers import dp_attention
    from sglang.srt.model_executor import forward_batch_info

    replace(
        "sglang.srt.distributed.parallel_state",
        reg_all_gather_into_tensor=_all_gather_into_tensor,
        reg_reduce_scatter_tensor=_reduce_scatter_tensor,
        inplace_all_reduce=_all_reduce_in_place,
    )
    dp_attention.memcpy_func = dp_attention.memcpy_cpu
    forward_batch_info._is_cpu = True  # padded rows: no pinned memory, lengths as the CPU's attention wants them
