"""Speculative decoding on the CPU platform: attention of drafts and of verified trees in torch.

SGLang's small kernels around it (trees, cache locations, acceptance) are Triton's, so servers need `TRITON_INTERPRET=1`, which
must be set before Triton is imported. SGLang's own branches for a CPU need a kernel package that no CPU platform of ours has.
"""

import importlib
import os
from typing import Any

import torch
from sglang.srt import utils

from specprefill_sgl.platforms.attention_math import Form, attend
from specprefill_sgl.platforms.torch_attention import TorchAttention

_KERNELS = "sglang.kernels.ops.speculative"
_SWITCHES = (f"{_KERNELS}.spec_tree", f"{_KERNELS}.cache_locs", "sglang.srt.speculative.eagle_utils")


class TorchDraftStep(TorchAttention):
    """Attention of one step of a draft: each branch onto the prefix and its own chain, of this step and those before it.

    Parameters
    ----------
    model_runner : ModelRunner
        The draft's.
    topk, num_steps : int
        Branches of a request, and the slots each has behind the prefix.
    step : int
        From 0.
    """

    def __init__(self, model_runner: Any, topk: int, num_steps: int, step: int):
        super().__init__(model_runner)
        if topk > 1 and model_runner.page_size > 1:
            raise NotImplementedError("branches of speculative drafts have pages of their own: use --page-size 1")
        self._topk, self._num_steps, self._step = topk, num_steps, step

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True, sinks=None):
        """[requests * topk, heads * head_dim] -> [requests * topk, heads * v_head_dim]."""
        assert layer.sliding_window_size in (None, -1), "drafts with sliding windows do not run here"
        self._write(k, v, layer, forward_batch, save_kv_cache)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = q.new_empty(len(queries), layer.tp_q_head_num, layer.v_head_dim)
        form = Form(layer.scaling, layer.logit_cap, None, sinks)
        requests = zip(forward_batch.req_pool_indices.tolist(), forward_batch.seq_lens.tolist(), strict=True)
        for at, (row, length) in enumerate(requests):
            table = self.req_to_token_pool.req_to_token[row]
            for branch in range(self._topk):
                start = length + branch * self._num_steps
                slots = torch.cat([table[:length], table[start : start + self._step + 1]])
                keys, values = self._cached(layer, slots, q.dtype)
                own = slice(at * self._topk + branch, at * self._topk + branch + 1)
                output[own] = attend(queries[own].movedim(0, 1), keys, values, form).movedim(0, 1)
        return output.flatten(1)


class TorchDraftSteps:
    """What SGLang's workers expect of a draft with several steps: a backend for each but the last, which only samples."""

    def __init__(self, model_runner: Any, topk: int, num_steps: int):
        self.topk = topk
        self.attn_backends = [TorchDraftStep(model_runner, topk, num_steps, step) for step in range(num_steps - 1)]

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Before each draft."""
        for backend in self.attn_backends:
            backend.init_forward_metadata(forward_batch)


def interprets() -> bool:
    """Whether Triton's kernels run here."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def register() -> None:
    """Offer both to SGLang's draft workers in this process, and take the branches of its code that call Triton's kernels."""
    if not interprets():
        return
    _import_tree_masks()
    for name in _SWITCHES:
        importlib.import_module(name)._is_xpu = True  # type: ignore[attr-defined]
    from sglang.srt.speculative.draft_utils import DraftBackendFactory

    create = DraftBackendFactory._create_backend

    def with_torch(self, name, backends, message, stamps_children=False):
        runner = self.draft_model_runner
        several = stamps_children  # of decodes, not of extends
        torch_backend = TorchDraftSteps(runner, self.topk, self.speculative_num_steps) if several else TorchAttention(runner)
        backends["torch_native"] = lambda: ("torch_native", torch_backend)
        return create(self, name, backends, message, stamps_children)

    DraftBackendFactory._create_backend = with_torch


def _import_tree_masks() -> None:
    """Where there is no XPU, the module imports a compiled kernel while it is loaded."""
    is_xpu, utils.is_xpu = utils.is_xpu, lambda: True
    try:
        importlib.import_module(f"{_KERNELS}.reconstruct_tree")
    finally:
        utils.is_xpu = is_xpu
