"""Agreement between tensor-parallel ranks: every rank must take the same decision, or their KV lengths differ and they hang."""

import math
from typing import Any

import torch
import torch.distributed as dist


class Ranks:
    """Collectives over the draft's tensor-parallel group; no-ops on one rank.

    Parameters
    ----------
    group : GroupCoordinator
        SGLang's tensor-parallel group: `world_size`, `rank_in_group`, `ranks`, `cpu_group`, `device_group`.
    """

    def __init__(self, group: Any):
        self._group = group
        self._alone = group.world_size == 1

    @property
    def is_first(self) -> bool:
        """Whether this rank's decisions count."""
        return self._group.rank_in_group == 0

    @property
    def size(self) -> int:
        """How many there are."""
        return self._group.world_size

    @property
    def rank(self) -> int:
        """This rank's place in the group."""
        return self._group.rank_in_group

    def any_error(self, error: str | None) -> str | None:
        """The first rank's error, in rank order, or None if no rank has one."""
        if self._alone:
            return error
        errors: list[str | None] = [None] * self._group.world_size
        dist.all_gather_object(errors, error, group=self._group.cpu_group)
        return next((e for e in errors if e is not None), None)

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise maximum over the ranks, in place. NaN becomes infinite: a maximum on a GPU may lose it."""
        if not self._alone:
            tensor.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=-math.inf)
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group.device_group)
        return tensor

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over the ranks, in place."""
        if not self._alone:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=self._group.device_group)
        return tensor

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """All ranks' tensors, [tokens, heads, dim] each, joined by heads in the order of the ranks."""
        if self._alone:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self._group.world_size)]
        dist.all_gather(parts, tensor.contiguous(), group=self._group.device_group)
        return torch.cat(parts, dim=1)

    def from_first(self, value: Any) -> Any:
        """Rank 0's value on every rank, over the CPU group."""
        if self._alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self._group.ranks[0], group=self._group.cpu_group)
        return box[0]
