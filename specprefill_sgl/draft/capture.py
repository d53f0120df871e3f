"""Records the draft's queries at the attention backend, so that no model file is patched (design.md, 4)."""

from typing import Any

import torch


class QueryCapture:
    """Stands in front of an attention backend, hands everything on, and keeps chosen rows of each layer's queries.

    Every attention layer of SGLang ends in `backend.forward(q, k, v, layer, forward_batch, ...)` with queries after RoPE
    and q/k norm. While rows are armed, `forward` keeps those rows.

    Attributes
    ----------
    layers : dict[int, RadixAttention]
        The attention layers seen so far, by layer id: their scale, logit cap, window and head counts.
    """

    _OWN = frozenset({"_backend", "_rows", "_taken", "layers"})

    def __init__(self, backend: Any):
        self._backend = backend
        self._rows: torch.Tensor | None = None
        self._taken: dict[int, torch.Tensor] = {}
        self.layers: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._backend, name, value)

    def forward(self, q, k, v, layer, forward_batch, *args, **kwargs):
        """The backend's own forward; records first."""
        if self._rows is not None and not layer.is_cross_attention:
            rows = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
            self._taken[layer.layer_id] = rows[self._rows]
            self.layers[layer.layer_id] = layer
        return self._backend.forward(q, k, v, layer, forward_batch, *args, **kwargs)

    def arm(self, rows: torch.Tensor) -> None:
        """Keep these rows (int64 [n], on the device) of the next forward."""
        self._rows, self._taken = rows, {}

    def disarm(self) -> dict[int, torch.Tensor]:
        """Stop recording; returns what was kept: layer id -> [n, heads, head_dim]."""
        taken, self._rows, self._taken = self._taken, None, {}
        return taken
