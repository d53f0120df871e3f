"""The paper's method: a small model of the target's vocabulary reads the prompt, and its attention votes (arXiv 2502.02789)."""

import logging
from typing import Any

from specprefill_sgl import compat
from specprefill_sgl.config import SpecPrefillConfig, flag
from specprefill_sgl.methods import vocabulary
from specprefill_sgl.methods.model_method import ModelMethod
from specprefill_sgl.models.ranks import Ranks

logger = logging.getLogger(__name__)


def check_at_start(config: SpecPrefillConfig, server_args: Any, target: Any) -> None:
    """In the launcher: target and draft fit together.

    Raises
    ------
    ConfigError
        One sentence that names the flag.
    """
    vocabulary.check_draft_path(config)
    draft = compat.draft_model_config(config, server_args, target=target)
    compat.check_draft(draft)
    vocabulary.check_vocabulary(config, server_args, target, draft)


def model_path(config: SpecPrefillConfig, _server_args: Any) -> str | None:
    """Whose heads vote."""
    return config.draft_model_path


def load(name: str, config: SpecPrefillConfig, scheduler: Any, ranks: Ranks, chunk_tokens: int) -> ModelMethod:
    """Weights and pools, before SGLang sizes the target's pool.

    Raises
    ------
    ConfigError
        If the draft cannot be loaded.
    """
    from specprefill_sgl.models.private import load as load_model
    from specprefill_sgl.scoring.triton_scoring import MAX_HEAD_DIM, kernels_can

    model_config = compat.draft_model_config(config, scheduler.server_args, target=scheduler.model_config)
    model = load_model(config, model_config, scheduler, chunk_tokens=chunk_tokens)
    if model.device.type == "cuda" and not kernels_can(config.rule.pool_kernel, compat.key_dim(model_config)):
        logger.warning(
            "--spec-prefill: plain torch computes the scores, slower than the kernels, which take heads up to %d.", MAX_HEAD_DIM
        )
    method = ModelMethod(name, model, ranks, config, vocab_size=model_config.vocab_size)
    longest = method.longest - config.rule.lookahead
    if longest < config.min_tokens:
        logger.warning(
            "--spec-prefill: the draft has room for prompts of %d tokens; only requests that lower %s, %d, can be sparse.",
            longest,
            flag("min_tokens"),
            config.min_tokens,
        )
    return method
