"""SGLang's ModelRunner for the draft: pools of its own size, of its own kind.

It runs with `is_draft_worker`, so that nothing process-wide of the target's is overwritten. But SGLang takes every such worker
for the prediction head of a larger model: as many layers as that head has, one of full attention among them, no recurrent
state. Where that would make pools too small or scores wrong, the flag is off for the moment (`_whole_model`).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from sglang.srt.layers.moe.utils import MoeRunnerBackend, speculative_moe_backend_context
from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
from sglang.srt.mem_cache.memory_pool import HybridReqToTokenPool, ReqToTokenPool
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.pool_configurator import MemoryPoolConfig
from sglang.srt.runtime_context import get_exec, get_flags, get_parallel, get_resources, get_spec

from specprefill_sgl import compat
from specprefill_sgl.models.sizes import MAX_STATES

_OWN_STATES = {
    "enable_mamba_extra_buffer": False,
    "enable_mamba_extra_buffer_lazy": False,
    "enable_linear_replayssm": False,
    "enable_linear_replayssm_spec": False,
    "enable_int8_mamba_checkpoint": False,
    "mamba_max_states_per_path": -1,
}
_NO_SPECULATION = {
    "speculative_algorithm": None,
    "speculative_num_steps": None,
    "speculative_eagle_topk": None,
    "speculative_num_draft_tokens": None,
    "speculative_draft_attention_backend": None,
    "speculative_draft_load_format": None,
    "enable_multi_layer_eagle": False,
}


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """What SGLang reads process-wide describes the target: its ranks, how it keeps recurrent states, where its experts are,
    who runs them, and how it decodes.

    With states or without, a draft keeps them plainly, its experts where their numbers say, runs them as
    `choose_expert_kernels` said, and decodes one token after the other. Scheduler and draft share one thread.
    """
    resources = get_resources()
    experts, resources.expert_location_metadata = resources.expert_location_metadata, None
    try:
        with (
            get_exec().mamba.override(**_OWN_STATES),
            get_exec().moe.override(ep_dispatch_algorithm=None),
            get_spec().override(**_NO_SPECULATION),
            speculative_moe_backend_context(),
            _own_ranks(),
        ):
            yield
    finally:
        resources.expert_location_metadata = experts


@contextlib.contextmanager
def _own_ranks() -> Iterator[None]:
    """A draft is whole on one pipeline stage, and split over attention's ranks only: those of others may be idle."""
    with contextlib.ExitStack() as stack:
        # imports are late: they bring prometheus_client, which must not be there before SGLang has set its folder
        if get_parallel().pp_size > 1:
            from sglang.srt.speculative.spec_utils import draft_pp_context

            stack.enter_context(draft_pp_context())
        if get_parallel().attn_dp_size > 1:
            stack.enter_context(compat.releases.installed().attention_ranks())
        yield


def choose_expert_kernels(target: Any, draft: Any) -> None:
    """The target's are chosen for its architecture and quantization (ModelConfigs); another draft's by SGLang's default.

    They order the weights of an expert differently, so that others than those a draft was loaded for answer wrongly.
    """
    of_target, of_draft = ((model.hf_config.architectures, model.quantization) for model in (target, draft))
    if of_target != of_draft:
        get_flags().moe.speculative_runner_backend = MoeRunnerBackend.AUTO


@contextlib.contextmanager
def _whole_model(worker: Any) -> Iterator[None]:
    """With `is_draft_worker` off."""
    worker.is_draft_worker, before = False, worker.is_draft_worker
    try:
        yield
    finally:
        worker.is_draft_worker = before


class _OwnPools(KVCacheConfigurator):
    """Sizes the pools from the runner's `memory_pool_config` instead of profiling the device.

    Swapped in as the class of a configurator that exists (a slots dataclass: no new slots, so that is legal); SGLang reads the
    ready-made configuration only for speculative decoding's drafts.
    """

    __slots__ = ()

    def _resolve_memory_pool_config(self, pre_model_load_memory: int) -> MemoryPoolConfig:
        return self.memory_pool_config

    def _build_hybrid_req_pool(self, *, max_num_reqs: int, extra_max_context_len: int) -> ReqToTokenPool:
        """As SGLang's, without what describes the target: its number of states, its strategy, its speculation."""
        return HybridReqToTokenPool(
            size=max_num_reqs,
            mamba_size=MAX_STATES,
            mamba_spec_state_size=max_num_reqs,
            max_context_len=self.model_config.context_len + extra_max_context_len,
            device=self.device,
            enable_memory_saver=False,
            cache_params=self.mambaish_config.mamba2_cache_params,
            mamba_layer_ids=self._get_mamba_layer_ids_for_req_pool(),
            enable_mamba_extra_buffer=False,
            enable_overlap_schedule=False,
            start_layer=self.layer_info.start_layer,
        )

    def _build_hybrid_linear_kv_pool(self, **sizes: Any) -> Any:
        with _whole_model(self):
            return super()._build_hybrid_linear_kv_pool(**sizes)


class PrivateRunner(ModelRunner):
    """Keys, scored later, stay in the draft's own dtype whatever `--kv-cache-dtype` says of the target's."""

    def configure_kv_cache_dtype(self):
        self.kv_cache_dtype, self.kv_cache_dtype_str = self.dtype, "auto"

    def init_kv_cache_configurator(self, *args, **kwargs):
        super().init_kv_cache_configurator(*args, **kwargs)
        self.kv_cache_configurator.__class__ = _OwnPools

    def init_attention_backends(self):
        super().init_attention_backends()  # as a draft: its backend is its own
        if (hybrid := compat.hybrid_config(self.model_config)) is not None:
            self.attn_backend.full_attn_layers = hybrid.full_attention_layer_ids

    def _maybe_execute_deferred_mamba_cow_and_clear(self, forward_batch):
        with _whole_model(self):  # states of new requests are cleared, those of cached prefixes copied
            super()._maybe_execute_deferred_mamba_cow_and_clear(forward_batch)
