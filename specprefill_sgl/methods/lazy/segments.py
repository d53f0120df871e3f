"""The target's layers run in parts, as the stages of a pipeline would: SGLang's own code for that, on one rank.

What lies between two parts is one hidden state a token. A part sees its own entries of the request table, which need not be
those of the part before it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors

from specprefill_sgl.models.capture import QueryCapture
from specprefill_sgl.models.layers import holder_of

Queries = dict[int, torch.Tensor]


class Segments:
    """A model runner's layers in parts.

    Parameters
    ----------
    runner : ModelRunner
        Its attention backend is built.
    bounds : tuple of int
        First layer of each part, and the number of layers.

    Raises
    ------
    ValueError
        If the model cannot be run in parts.
    """

    def __init__(self, runner: Any, bounds: tuple[int, ...]):
        self._runner, self._bounds, self._forward = runner, bounds, runner.forward
        self._capture = QueryCapture(runner.attn_backend, runner.token_to_kv_pool)
        self._holders = runner.model, holder_of(runner.model)
        if not (runner.support_pp and {"start_layer", "end_layer", "pp_group"} <= vars(self._holders[1]).keys()):
            raise ValueError(f"{type(runner.model).__name__} cannot be run in parts")

    @property
    def layers(self) -> dict[int, Any]:
        """The attention layers whose queries were recorded so far, by `layer_id`."""
        return {layer.layer_id: layer for layer in self._capture.layers.values()}

    def run(
        self, part: int, batch: Any, hidden: torch.Tensor | None, rows: torch.Tensor | None, *, to_end: bool = False
    ) -> tuple[Any, Queries]:
        """One part's forward, never by a CUDA graph.

        Parameters
        ----------
        part : int
        batch : ForwardBatch
        hidden : [tokens, hidden_size] or None
            What the part before it gave; None: the first part, which embeds the batch's ids.
        rows : int64 [n] or None
            Tokens whose queries are recorded.
        to_end : bool
            Whether the last part gives logits.

        Returns
        -------
        output : ModelRunnerOutput with logits, or Tensor [tokens, hidden_size]
        queries : dict of int to Tensor
            `layer_id` -> [n, heads, head_dim].
        """
        given = None
        if hidden is not None:  # their sum is what the next layer reads
            given = PPProxyTensors({"hidden_states": hidden.clone(), "residual": torch.zeros_like(hidden)})
        with self._only(part, with_logits=to_end):
            if rows is not None:
                self._capture.arm(rows)
            try:
                output = self._forward(batch, pp_proxy_tensors=given)
            finally:
                taken = self._capture.disarm()
        queries = {self._capture.layers[number].layer_id: own for number, own in taken.items()}
        if to_end:
            return output, queries
        tensors = output.logits_output.tensors
        return tensors["hidden_states"] + tensors["residual"], queries

    @contextlib.contextmanager
    def _only(self, part: int, *, with_logits: bool) -> Iterator[None]:
        runner, (outer, inner) = self._runner, self._holders
        group = _Place(inner.pp_group, is_first_rank=part == 0, is_last_rank=with_logits)
        changes: list[tuple[Any, str, Any]] = [(holder, "pp_group", group) for holder in (outer, inner)]
        changes += [(inner, "start_layer", self._bounds[part]), (inner, "end_layer", self._bounds[part + 1])]
        changes += [(runner, name, None) for name in ("decode_cuda_graph_runner", "prefill_cuda_graph_runner")]
        changes += [(runner, "attn_backend", self._capture)]
        before = [(holder, name, getattr(holder, name)) for holder, name, _ in changes]
        try:
            for holder, name, value in changes:
                setattr(holder, name, value)
            yield
        finally:
            for holder, name, value in before:
                setattr(holder, name, value)


class _Place:
    """A pipeline group seen from another of its stages."""

    def __init__(self, group: Any, *, is_first_rank: bool, is_last_rank: bool):
        self._group, self.is_first_rank, self.is_last_rank = group, is_first_rank, is_last_rank

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)
