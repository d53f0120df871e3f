"""The paper's method: a small model of the target's vocabulary reads the prompt, and its attention votes (arXiv 2502.02789)."""

import logging
import os
from typing import Any

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.methods import vocabulary
from specprefill_sgl.methods.model_method import ModelMethod
from specprefill_sgl.methods.own_tokens import OwnTokens
from specprefill_sgl.methods.protocol import Planned
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
    if config.revive_every and config.draft_tokenizer == "own":
        raise ConfigError(
            f"{flag('revive_every')} cannot be combined with {flag('draft_tokenizer')} own: answers are in the target's tokens."
        )


def token_reader(config: SpecPrefillConfig, server_args: Any) -> OwnTokens | None:
    """Of `--spec-prefill-draft-tokenizer own`; else None: the draft reads the target's ids."""
    return None if config.draft_tokenizer == "target" else vocabulary.own_tokens(config, server_args)


def planned(config: SpecPrefillConfig, server_args: Any, target: Any) -> Planned:
    """The draft."""
    draft = compat.draft_model_config(config, server_args, target=target)
    return Planned(draft, config.draft_model_path, config.rule_for(config.selection, "draft"))


def model_path(config: SpecPrefillConfig, _server_args: Any) -> str | None:
    """Whose heads vote."""
    return config.draft_model_path


def load(name: str, config: SpecPrefillConfig, scheduler: Any, ranks: Ranks, chunk_tokens: int) -> ModelMethod:
    """Weights and pools, before SGLang sizes the target's pool. Weights that SGLang's speculative draft has are shared.

    Raises
    ------
    ConfigError
        If the draft cannot be loaded.
    """
    from specprefill_sgl.models.private import load as load_model

    model_config = compat.draft_model_config(config, scheduler.server_args, target=scheduler.model_config)
    lender = _lender(config, scheduler)
    if lender is not None:
        logger.info("--spec-prefill: the draft shares the weights of %s.", compat.SPECULATIVE_DRAFT_FLAG)
    model = load_model(config, model_config, scheduler, chunk_tokens=chunk_tokens, lender=lender)
    described = f"{flag('draft_model_path')} {config.draft_model_path}: the draft"
    return ModelMethod(name, described, model, ranks, config, model_config, own_tokens=config.draft_tokenizer == "own")


def _lender(config: SpecPrefillConfig, scheduler: Any) -> Any | None:
    """The runner of SGLang's speculative draft, if that is this model as a whole; None else."""
    from specprefill_sgl.models.layers import path_to_layers

    theirs = os.path.expanduser(scheduler.server_args.speculative_draft_model_path or "")
    if not (scheduler.spec_algorithm.is_standalone() and theirs == config.draft_model_path):
        return None
    runner = scheduler.draft_worker.draft_worker.draft_runner
    try:
        path_to_layers(runner.model)
    except ValueError:  # of a family whose layers lie elsewhere: loaded twice
        return None
    return runner
