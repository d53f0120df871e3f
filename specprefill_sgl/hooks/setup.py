"""The methods join the scheduler while SGLang starts: weights and pools, attention backends, forward runners."""

import logging
from typing import Any

import torch

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError
from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.hooks.pipeline import follows
from specprefill_sgl.hooks.speculation import mend_loaded
from specprefill_sgl.models.ranks import Ranks
from specprefill_sgl.stage.stage import Stage

logger = logging.getLogger(__name__)

_STAGE = "_spec_prefill_stage"
_DEFAULT_CHUNK_TOKENS = 2048  # one draft forward where the server's own chunked prefill is off


def init_methods(_result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.maybe_init_draft_worker: weights and pools, before SGLang sizes the target's pool.

    On a pipeline's first stage only.

    Raises
    ------
    ConfigError
        If a hook did not apply or a method cannot be loaded; the server stops.
    """
    config = config_of(scheduler.server_args)
    if config is None:
        return
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.runtime_context import get_parallel

    from specprefill_sgl.hooks import verify
    from specprefill_sgl.methods import registry

    verify()
    if follows(scheduler):
        return
    chunked = resolving_view(scheduler.server_args).chunked_prefill_size
    chunk_tokens = chunked if chunked and chunked > 0 else _DEFAULT_CHUNK_TOKENS
    ranks = Ranks(get_parallel().attn_tp_group)
    methods = registry.load(config, scheduler, ranks, chunk_tokens)
    if not methods:
        return
    for warning in registry.warnings(config, scheduler.server_args):
        logger.warning("--spec-prefill: %s", warning)
    if compat.never_run(scheduler.model_config):
        logger.warning("--spec-prefill: sparse attention under Speculative Prefill was read, never run: check its answers.")
    window = scheduler.tp_worker.model_runner.sliding_window_size or 0
    if window:
        logger.warning(
            "--spec-prefill: the target's sliding windows count kept tokens, so they reach further back than its own."
        )
    stage = Stage(config, methods, ranks, window=window, after_snapshot=_after_snapshot(scheduler))
    setattr(scheduler, _STAGE, stage)


def _after_snapshot(scheduler: Any) -> int:
    """SGLang takes snapshots on a grid while it prefills, at an interval while it decodes, and caches up to the last."""
    from sglang.srt.runtime_context import get_exec, mamba_checkpoint_grid, mamba_track_grid

    if not (compat.hybrid_config(scheduler.model_config) and get_exec().mamba.enable_mamba_extra_buffer):
        return 0
    return mamba_checkpoint_grid(scheduler.page_size) + mamba_track_grid(scheduler.page_size)


def init_attention_backend(_result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.init_all_attention_backends."""
    if (stage := stage_of(scheduler)) is not None:
        mend_loaded()
        for method in stage.methods.values():
            method.init_attention_backend()


def init_runner(_result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.init_all_cuda_graphs; without gradients, as SGLang's own.

    Raises
    ------
    ConfigError
        If a method fails on a first prompt, or does not have the calibrated heads; the server stops.
    """
    if (stage := stage_of(scheduler)) is None:
        return
    from specprefill_sgl.hooks.lazy import install, lazy_of

    if (lazy := lazy_of(stage)) is not None:
        install(scheduler, stage, lazy)
    for name, method in stage.methods.items():
        with torch.no_grad():
            method.init_runner()
            able = stage.warm_up(name)
        method.check()
        if not able:
            raise ConfigError(f"{method.described} failed on its first prompt; the log above says why")


def stage_of(scheduler: Any) -> Stage | None:
    """The scheduler's stage, None without `--spec-prefill`."""
    return getattr(scheduler, _STAGE, None)
