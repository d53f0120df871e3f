"""Records the draft's queries at the attention backend, so that no model file is patched (README, How it works, 2)."""

from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool
from sglang.srt.model_executor.runner_utils.capture_mode import get_is_capture_mode


class QueryCapture:
    """Stands in front of an attention backend, hands everything on, and keeps chosen rows of each layer's queries.

    Every attention layer of SGLang ends in `backend.forward(q, k, v, layer, forward_batch, ...)` with queries after RoPE
    and q/k norm. While rows are armed, `forward` keeps those rows. Where no rows are wanted, only keys are, and no key depends
    on what the last layer's attention answers: its keys and values are written, and it is not computed.

    A CUDA graph replays without calling `forward`. So while one is captured, the queries' own tensors are kept: each replay
    writes into them anew, and nothing else does, since memory of a graph that is referred to is not used again.

    Parameters
    ----------
    backend : AttentionBackend
    pool : KVCache
        Where that backend writes keys and values.

    Attributes
    ----------
    layers : dict[int, RadixAttention]
        The attention layers seen so far, by layer id and in the order of a forward: their scale, logit cap, window and head
        counts.
    """

    _OWN = frozenset({"_backend", "_pool", "_rows", "_keys_only", "_taken", "_graphs", "layers"})

    def __init__(self, backend: Any, pool: Any):
        self._backend = backend
        self._pool = pool
        self._rows: torch.Tensor | None = None
        self._keys_only = False
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

    def forward(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        """The backend's own forward; records first. Zeros where nothing reads what it would answer."""
        in_graph = get_is_capture_mode()
        if (in_graph or self._rows is not None) and not layer.is_cross_attention:
            rows = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
            if in_graph:
                self._graphs.setdefault(len(rows), {})[layer.layer_id] = rows
            else:
                self._taken[layer.layer_id] = rows[self._rows]
            self.layers[layer.layer_id] = layer
        if self._keys_only and not in_graph and self._ends_in(layer):
            if save_kv_cache and k is not None:
                self._pool.set_kv_buffer(layer, KVWriteLoc.for_batch(forward_batch), k, v)
            return q.new_zeros(q.shape[0], layer.tp_q_head_num * layer.v_head_dim)
        return self._backend.forward(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)

    def _ends_in(self, layer: Any) -> bool:
        """Whether a forward attends last in this layer; only where its keys and values are written as plainly as above."""
        return type(self._pool) is MHATokenToKVPool and layer is next(reversed(self.layers.values()), None)

    def arm(self, rows: torch.Tensor | None) -> None:
        """Keep these rows (int64 [n], on the device) of the next forward; of None, only the keys are wanted."""
        self._rows, self._keys_only, self._taken = rows, rows is None, {}

    def disarm(self) -> dict[int, torch.Tensor]:
        """Stop recording; returns what was kept: layer id -> [n, heads, head_dim]."""
        taken, self._rows, self._keys_only, self._taken = self._taken, None, False, {}
        return taken

    def replayed(self, n: int) -> dict[int, torch.Tensor]:
        """Of the first `n` rows, after a replay of the smallest graph that has so many: layer id -> [n, heads, head_dim]."""
        size = min(size for size in self._graphs if size >= n)
        return {layer_id: rows[:n].clone() for layer_id, rows in self._graphs[size].items()}
