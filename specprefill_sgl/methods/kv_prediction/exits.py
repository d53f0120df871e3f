"""What leaves the target's first layers, kept of every token that lies in their pool: KV of the layers above comes from it."""

import functools
from typing import Any

import torch

from specprefill_sgl.models.first_layers import BorrowingRunner
from specprefill_sgl.models.layers import holder_of, shallow


class ExitRunner(BorrowingRunner):
    """A `BorrowingRunner` that remembers the final norm's answer to its last layer, one row for each slot of its pool.

    Attributes
    ----------
    exits : [slots, hidden]
        In the model's dtype; the final norm's weight is part of them, which a linear map takes off again.
    """

    exits: torch.Tensor
    _slots: torch.Tensor | None = None  # of the forward in progress

    def load_model(self) -> None:
        """The view's norm is a copy with the same parameters; the target keeps its own."""
        super().load_model()
        holder = holder_of(self.model)
        norm = holder._modules["norm"] = shallow(holder._modules["norm"])
        norm.forward = functools.partial(self._recorded, norm)

    def alloc_memory_pool(self, *args: Any, **kwargs: Any) -> None:
        """With the rows beside it."""
        super().alloc_memory_pool(*args, **kwargs)
        slots = len(self.token_to_kv_pool.get_key_buffer(0))
        self.exits = torch.zeros(slots, self.model_config.hidden_size, dtype=self.dtype, device=self.device)

    def forward(self, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
        """The norm is told where the tokens lie."""
        self._slots = forward_batch.out_cache_loc
        try:
            return super().forward(forward_batch, *args, **kwargs)
        finally:
            self._slots = None

    def _recorded(self, norm: Any, *args: Any, **kwargs: Any) -> Any:
        answer = type(norm).forward(norm, *args, **kwargs)
        if self._slots is not None:
            normed = answer[0] if isinstance(answer, tuple) else answer
            self.exits[self._slots] = normed[: len(self._slots)]
        return answer
