"""A model that reads prompts, on the target's devices and ranks: a ModelRunner of its own with private KV pools."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.pool_configurator import MemoryPoolConfig

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.models.capture import QueryCapture
from specprefill_sgl.models.first_layers import BorrowingRunner
from specprefill_sgl.models.group import PromptGroup
from specprefill_sgl.models.keys_only import skip_what_follows
from specprefill_sgl.models.latent import absorb_always
from specprefill_sgl.models.prefix_cache import prefix_cache
from specprefill_sgl.models.runner import PrivateRunner, choose_expert_kernels, own_settings
from specprefill_sgl.models.sizes import MAX_PROMPTS, pool_tokens
from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.selection.first_layers import last_part
from specprefill_sgl.selection.rule import Heads


class PrivateModel:
    """A draft, or the target's first layers: owns its pools, drafts groups of prompts.

    Parameters
    ----------
    config : SpecPrefillConfig
    model_config : ModelConfig
        Its own, from `compat.draft_model_config` or `compat.first_layers_config`.
    scheduler : Scheduler
        Its device, ports and server arguments are shared; nothing of it is changed.
    chunk_tokens : int
        Most prompt tokens in one of its forwards.
    runner : callable
        Makes the runner, from `PrivateRunner`'s keyword arguments.
    voting_part : int
        Where no heads are chosen, one of so many layers votes, the last ones.
    keys_suffice : bool
        Else what leaves the last layer is wanted of every token.
    """

    @own_settings()
    def __init__(
        self,
        config: SpecPrefillConfig,
        model_config: ModelConfig,
        scheduler: Any,
        *,
        chunk_tokens: int,
        runner: Callable[..., PrivateRunner] = PrivateRunner,
        voting_part: int = 1,
        keys_suffice: bool = True,
    ):
        self.chunk_tokens, self._voting_part, self._keys_suffice = chunk_tokens, voting_part, keys_suffice
        self._lookahead, self._part = config.rule.lookahead, 1  # of the group in progress
        self.context_len = model_config.context_len
        page = scheduler.page_size
        self.max_tokens = pool_tokens(config, self.context_len, page)
        self.page_size = page
        self._runner = runner(
            model_config=model_config,
            mem_fraction_static=0.1,  # read only when pools are profiled, which these are not
            gpu_id=scheduler.tp_worker.model_runner.gpu_id,
            nccl_port=scheduler.nccl_port,
            server_args=scheduler.server_args,
            is_draft_worker=True,
            memory_pool_config=MemoryPoolConfig(
                max_total_num_tokens=self.max_tokens,
                max_running_requests=MAX_PROMPTS,
                # of a draft whose windowed layers have a pool of their own
                full_max_total_num_tokens=self.max_tokens,
                swa_max_total_num_tokens=self.max_tokens,
            ),
            draft_attention_backend=compat.draft_attention_backend(scheduler.server_args, model_config),
        )
        self._runner.alloc_memory_pool()
        self._tree = prefix_cache(self._runner, page, disable=scheduler.server_args.disable_radix_cache)
        self._capture: QueryCapture | None = None

    @own_settings()
    def init_attention_backend(self) -> None:
        """Build the attention backend and put the recording proxy in front of it."""
        self._runner.init_attention_backends()
        if self._runner.use_mla_backend:
            absorb_always(self._runner.attn_backend)
        pool = self._runner.token_to_kv_pool
        self._capture = QueryCapture(self._runner.attn_backend, pool, keys_suffice=self._keys_suffice)
        self._runner.attn_backend = self._capture
        skip_what_follows(self._runner.model, lambda: self._capture is not None and self._capture.is_keys_only)

    @own_settings()
    def init_runner(self) -> None:
        """Build the runner's forward; the lookahead decodes under a CUDA graph where the server uses them.

        Not with two-batch overlap: its capture wants an attention backend of its own, which a draft does not get.
        """
        self._runner.init_cuda_graphs(capture_decode_cuda_graph=not self._runner.server_args.enable_two_batch_overlap)

    def tokens_needed(self, prompt: Prompt) -> int:
        """KV slots a prompt takes while it is drafted, page rounding included."""
        return -(-(len(prompt.read_ids) + len(prompt.answer) + prompt.rule.lookahead) // self.page_size) * self.page_size

    def begin(self, prompts: Sequence[Prompt]) -> PromptGroup:
        """Start on prompts of one rule that fit the pool together; only one group at a time."""
        assert self._capture is not None
        self._lookahead, heads = prompts[0].rule.lookahead, prompts[0].rule.heads
        self._part = self._voting_part if heads is None else 1
        return PromptGroup(self._runner, self._capture, self._tree, prompts, chunk_tokens=self.chunk_tokens)

    def clear(self) -> None:
        """Empty the cache and both pools, whatever state a forward left them in; no group may be in progress."""
        self._tree.reset()
        self._runner.req_to_token_pool.clear()
        self._runner.token_to_kv_pool_allocator.clear()

    @property
    def runner(self) -> PrivateRunner:
        """SGLang's, with the model and its pools."""
        return self._runner

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self._runner.device)

    def cached_tokens(self) -> int:
        """Slots of the KV pool that hold keys of earlier prompts and can be evicted."""
        return self._tree.evictable_size()

    def free_tokens(self) -> int:
        """Slots of the KV pool that hold nothing."""
        return self._runner.token_to_kv_pool_allocator.available_size()

    def available_tokens(self) -> int:
        """Slots of the KV pool that are free or can be evicted."""
        return self.free_tokens() + self._tree.evictable_size()

    def available_rows(self) -> int:
        """Free rows of the request table."""
        return self._runner.req_to_token_pool.available_size()

    def voting_layers(self, read_tokens: int) -> dict[int, Any]:
        """Attention layers whose queries vote on a prompt that is so long with its answer; by number, as the queries are."""
        seeing = self._seeing_layers(read_tokens)
        return dict(last_part(list(seeing.items()), self._part))

    def _seeing_layers(self, read_tokens: int) -> dict[int, Any]:
        """Those that see all of it.

        A layer whose sliding window is shorter sees only the end of the prompt and is left out, as long as some layer sees all
        of it.
        """
        assert self._capture is not None
        seen = self._capture.layers
        reach = read_tokens + self._lookahead
        return {i: layer for i, layer in seen.items() if not 0 <= _window(layer) < reach - 1} or seen

    def sees_whole_prompts(self) -> bool:
        """Whether some attention layer has no window, after a first forward."""
        assert self._capture is not None
        return any(_window(layer) < 0 for layer in self._capture.layers.values())

    def heads_of(self, number: int) -> int:
        """Query heads of a layer on this rank."""
        assert self._capture is not None
        return self._capture.layers[number].tp_q_head_num

    def cannot_vote(self, heads: Heads, ranks: int) -> str | None:
        """Why these heads of all ranks cannot be those that vote, after a first forward; None if they can."""
        assert self._capture is not None
        layers = self._capture.layers
        for layer, head in heads:
            if layer not in layers or head >= self.heads_of(layer) * ranks:
                return f"its model has no head {head} in attention layer {layer}"
        if not {layer for layer, _ in heads} & self._seeing_layers(self.context_len).keys():
            return "all its heads are in layers whose sliding window does not reach over a long prompt"
        return None

    def sinks(self, number: int) -> torch.Tensor | None:
        """Attention sinks of one layer, [heads], or None."""
        assert self._capture is not None
        return self._capture.sinks.get(number)

    def keys(self, layer: Any) -> torch.Tensor:
        """Key buffer of a layer, [slots, kv_heads, head_dim]."""
        return self._runner.token_to_kv_pool.get_key_buffer(layer.layer_id)

    def slots(self, layer: Any, slots: torch.Tensor) -> torch.Tensor:
        """Where in its key buffer a layer keeps what the request table says is at `slots`; int64, as given."""
        pool = self._runner.token_to_kv_pool
        if isinstance(pool, SWAKVPool) and _window(layer) >= 0:
            return pool.translate_loc_from_full_to_swa(slots).long()
        return slots


def _window(layer: Any) -> int:
    """Tokens before its own that a layer's query sees; -1 for all."""
    return -1 if layer.sliding_window_size is None else layer.sliding_window_size


def load(
    config: SpecPrefillConfig, model_config: ModelConfig, scheduler: Any, *, chunk_tokens: int, lender: Any | None = None
) -> PrivateModel:
    """`PrivateModel`, with a failure said in one sentence that names the flag; with the weights of another runner, if given."""
    choose_expert_kernels(scheduler.model_config, model_config)
    layers = model_config.num_hidden_layers
    runner = PrivateRunner if lender is None else functools.partial(BorrowingRunner, lender=lender, layers=layers)
    try:
        return PrivateModel(config, model_config, scheduler, chunk_tokens=chunk_tokens, runner=runner)
    except Exception as error:
        raise ConfigError(
            f"{flag('draft_model_path')} {config.draft_model_path}: the draft could not be loaded: {error}"
        ) from error
