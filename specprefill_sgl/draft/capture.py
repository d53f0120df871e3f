"""Records the draft's queries at the attention backend, so that no model file is patched (design.md, 4)."""

from typing import Any

import torch
from sglang.srt.model_executor.runner_utils.capture_mode import get_is_capture_mode


class QueryCapture:
    """Stands in front of an attention backend, hands everything on, and keeps chosen rows of each layer's queries.

    Every attention layer of SGLang ends in `backend.forward(q, k, v, layer, forward_batch, ...)` with queries after RoPE
    and q/k norm. While rows are armed, `forward` keeps those rows.

    A CUDA graph replays without calling `forward`. So while one is captured, the queries' own tensors are kept: each replay
    writes into them anew, and nothing else does, since memory of a graph that is referred to is not used again.

    Attributes
    ----------
    layers : dict[int, RadixAttention]
        The attention layers seen so far, by layer id: their scale, logit cap, window and head counts.
    """

    _OWN = frozenset({"_backend", "_rows", "_taken", "_graphs", "layers"})

    def __init__(self, backend: Any):
        self._backend = backend
        self._rows: torch.Tensor | None = None
        self._taken: dict[int, torch.Tensor] = {}
        self._graphs: dict[int, dict[int, torch.Tensor]] = {}  # captured batch size -> layer id -> queries of the last replay
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
        in_graph = get_is_capture_mode()
        if (in_graph or self._rows is not None) and not layer.is_cross_attention:
            rows = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
            if in_graph:
                self._graphs.setdefault(len(rows), {})[layer.layer_id] = rows
            else:
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

    def replayed(self, n: int) -> dict[int, torch.Tensor]:
        """Of the first `n` rows, after a replay of the smallest graph that has so many: layer id -> [n, heads, head_dim]."""
        size = min(size for size in self._graphs if size >= n)
        return {layer_id: rows[:n].clone() for layer_id, rows in self._graphs[size].items()}
