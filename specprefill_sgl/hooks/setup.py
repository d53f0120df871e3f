"""The draft joins the scheduler while SGLang starts: weights and pools, attention backend, forward runner."""

import logging
from typing import Any

import torch

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError, flag
from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.models.ranks import Ranks
from specprefill_sgl.stage.stage import Stage

logger = logging.getLogger(__name__)

_STAGE = "_spec_prefill_stage"
_DEFAULT_CHUNK_TOKENS = 2048  # one draft forward where the server's own chunked prefill is off


def init_draft(_result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.maybe_init_draft_worker: draft weights and pools, before SGLang sizes the target's pool.

    Raises
    ------
    ConfigError
        If a hook did not apply or the draft cannot be loaded; the server stops.
    """
    config = config_of(scheduler.server_args)
    if config is None:
        return
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.runtime_context import get_parallel

    from specprefill_sgl.hooks import verify
    from specprefill_sgl.models.private import load
    from specprefill_sgl.scoring.triton_scoring import MAX_HEAD_DIM, kernels_can

    verify()
    draft_config = compat.draft_model_config(config, scheduler.server_args, target=scheduler.model_config)
    chunked = resolving_view(scheduler.server_args).chunked_prefill_size
    chunk_tokens = chunked if chunked and chunked > 0 else _DEFAULT_CHUNK_TOKENS
    draft = load(config, draft_config, scheduler, chunk_tokens=chunk_tokens)
    if draft.device.type == "cuda" and not kernels_can(config.rule.pool_kernel, compat.key_dim(draft_config)):
        logger.warning(
            "--spec-prefill: plain torch computes the scores, slower than the kernels, which take heads up to %d.", MAX_HEAD_DIM
        )
    longest = min(draft.context_len, draft.max_tokens) - config.rule.lookahead
    if longest < config.min_tokens:
        logger.warning(
            "--spec-prefill: the draft has room for prompts of %d tokens; only requests that lower %s, %d, can be sparse.",
            longest,
            flag("min_tokens"),
            config.min_tokens,
        )
    if compat.never_run(scheduler.model_config):
        logger.warning("--spec-prefill: sparse attention under Speculative Prefill was read, never run: check its answers.")
    window = scheduler.tp_worker.model_runner.sliding_window_size or 0
    if window:
        logger.warning(
            "--spec-prefill: the target's sliding windows count kept tokens, so they reach further back than its own."
        )
    stage = Stage(
        config,
        draft,
        Ranks(get_parallel().tp_group),
        vocab_size=draft_config.vocab_size,
        window=window,
        after_snapshot=_after_snapshot(scheduler),
    )
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
        stage.draft.init_attention_backend()


def init_runner(_result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.init_all_cuda_graphs; without gradients, as SGLang's own.

    Raises
    ------
    ConfigError
        If the draft fails on a first prompt, or does not have the calibrated heads; the server stops.
    """
    if (stage := stage_of(scheduler)) is None:
        return
    from sglang.srt.runtime_context import get_parallel

    config = stage.config
    with torch.no_grad():
        stage.draft.init_runner()
        able = stage.warm_up()
    if config.calibrated is not None and (
        why := stage.draft.cannot_vote(config.calibrated, get_parallel().tp_group.world_size)
    ):
        raise ConfigError(f"{flag('heads')} {config.heads} cannot be used: {why}")
    if not able:
        path = f"{flag('draft_model_path')} {config.draft_model_path}"
        raise ConfigError(f"{path}: the draft failed on its first prompt; the log above says why")


def stage_of(scheduler: Any) -> Stage | None:
    """The scheduler's stage, None without `--spec-prefill`."""
    return getattr(scheduler, _STAGE, None)
