"""Records the draft's queries at the attention backend, so that no model file is patched (docs/how-it-works.md, 3)."""

from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool
from sglang.srt.model_executor.runner_utils.capture_mode import get_is_capture_mode


class QueryCapture:
    """Stands in front of an attention backend, hands everything on, and keeps chosen rows of each layer's queries.

    Every attention layer of SGLang ends in `backend.forward(q, k, v, layer, forward_batch, ...)` with queries after RoPE
    and q/k norm. While rows are armed, `forward` keeps those rows. Where no rows are wanted, only keys are, and no key depends
    on what the last layer's attention answers: its keys and values are written, and it is not computed.

    Layers are numbered as they are first seen, since several may share a `layer_id`: that says where keys are, not whose
    queries. Linear layers have no queries; their calls are handed on.

    A CUDA graph replays without calling `forward`. So while one is captured, the queries' own tensors are kept: each replay
    writes into them anew, and nothing else does, since memory of a graph that is referred to is not used again.

    Parameters
    ----------
    backend : AttentionBackend
    pool : KVCache
        Where that backend writes keys and values.
    keys_suffice : bool
        Else a forward of which no rows are wanted is computed as others are: what leaves the last layer is wanted.

    Attributes
    ----------
    layers : dict[int, RadixAttention]
        The attention layers seen so far, by number and in the order of a forward: their `layer_id`, scale, logit cap, window
        and head counts.
    sinks : dict[int, Tensor]
        Attention sinks [heads] of the layers that have them, by number: one more logit, whose weight goes nowhere.
    """

    _OWN = frozenset(
        {"_backend", "_pool", "_rows", "_keys_only", "_keys_suffice", "_taken", "_graphs", "_numbers", "layers", "sinks"}
    )

    def __init__(self, backend: Any, pool: Any, *, keys_suffice: bool = True):
        self._backend = backend
        self._pool = pool
        self._keys_suffice = keys_suffice
        self._rows: torch.Tensor | None = None
        self._keys_only = False
        self._taken: dict[int, torch.Tensor] = {}
        self._graphs: dict[int, dict[int, torch.Tensor]] = {}  # captured batch size -> number -> queries of the last replay
        self._numbers: dict[int, int] = {}  # by identity
        self.layers: dict[int, Any] = {}
        self.sinks: dict[int, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._backend, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The backend's: models of linear layers assert that theirs is the hybrid one."""
        return type(self._backend)

    def forward(self, q=None, k=None, v=None, layer=None, forward_batch=None, save_kv_cache=True, **kwargs):
        """The backend's own forward; records first. Zeros where nothing reads what it would answer."""
        if q is None:  # a linear layer
            return self._backend.forward(layer=layer, forward_batch=forward_batch, save_kv_cache=save_kv_cache, **kwargs)
        in_graph = get_is_capture_mode()
        if (in_graph or self._rows is not None) and not layer.is_cross_attention:
            number = self._number(layer)
            rows = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
            if in_graph:
                self._graphs.setdefault(len(rows), {})[number] = rows
            else:
                self._taken[number] = rows[self._rows]
            if kwargs.get("sinks") is not None:
                self.sinks[number] = kwargs["sinks"]
        if self._keys_only and not in_graph and self._ends_in(layer):
            if save_kv_cache and k is not None:
                self._pool.set_kv_buffer(layer, KVWriteLoc.for_batch(forward_batch), k, v)
            return q.new_zeros(q.shape[0], layer.tp_q_head_num * layer.v_head_dim)
        return self._backend.forward(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)

    def _number(self, layer: Any) -> int:
        number = self._numbers.setdefault(id(layer), len(self._numbers))
        self.layers[number] = layer
        return number

    def _ends_in(self, layer: Any) -> bool:
        """Whether a forward attends last in this layer; only where its keys and values are written as plainly as above."""
        return type(self._pool) is MHATokenToKVPool and layer is next(reversed(self.layers.values()), None)

    @property
    def is_keys_only(self) -> bool:
        """Whether the forward in progress is for its keys alone."""
        return self._keys_only

    def arm(self, rows: torch.Tensor | None) -> None:
        """Keep these rows (int64 [n], on the device) of the next forward; of None, only the keys are wanted."""
        self._rows, self._keys_only, self._taken = rows, rows is None and self._keys_suffice, {}

    def disarm(self) -> dict[int, torch.Tensor]:
        """Stop recording; returns what was kept: number of the layer -> [n, heads, head_dim]."""
        taken, self._rows, self._keys_only, self._taken = self._taken, None, False, {}
        return taken

    def replayed(self, n: int) -> dict[int, torch.Tensor]:
        """Of the first `n` rows, after a replay of the smallest graph that has so many: number -> [n, heads, head_dim]."""
        size = min(size for size in self._graphs if size >= n)
        return {number: rows[:n].clone() for number, rows in self._graphs[size].items()}
