"""The target's own first layers read the prompt: no second model, no question of tokenizers (issue Readers, 3).

The last tokens vote: with calibrated heads, else in the last of these layers (`selection/first_layers.py` says why).
"""

import functools
from typing import Any

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.methods.layers import check_layers, shown
from specprefill_sgl.methods.model_method import ModelMethod
from specprefill_sgl.methods.protocol import Planned
from specprefill_sgl.models.ranks import Ranks
from specprefill_sgl.selection.first_layers import VOTING_PART, of_last_tokens
from specprefill_sgl.selection.rule import Rule

refusals = compat.first_layers_refusals  # options that hook into the target's modules


def check_at_start(config: SpecPrefillConfig, _server_args: Any, target: Any) -> None:
    """In the launcher: the layers are fewer than the target's, and they see the prompt.

    Raises
    ------
    ConfigError
        One sentence that names the flag.
    """
    assert config.layers is not None
    if len(config.layers) > 1:
        raise ConfigError(f"{flag('layers')} must be one number for {flag('method')} early-layers, got {shown(config)}.")
    check_layers(config, target)
    compat.check_first_layers(target)


def _layers(config: SpecPrefillConfig) -> int:
    assert config.layers is not None
    return config.layers[0]


def model_path(_config: SpecPrefillConfig, server_args: Any) -> str:
    """Whose heads these layers have."""
    return server_args.model_path


def planned(config: SpecPrefillConfig, _server_args: Any, target: Any) -> Planned:
    """The target's first layers."""
    rule = EarlyLayers.adapted(config.rule_for(config.selection, "early-layers"))
    return Planned(compat.first_layers_config(target, _layers(config)), None, rule)


def load(name: str, config: SpecPrefillConfig, scheduler: Any, ranks: Ranks, chunk_tokens: int) -> "EarlyLayers":
    """Pools for the first layers, before SGLang sizes the target's own.

    Raises
    ------
    ConfigError
        If the target cannot be cut.
    """
    from specprefill_sgl.models.first_layers import BorrowingRunner
    from specprefill_sgl.models.private import PrivateModel

    target = scheduler.tp_worker.model_runner
    model_config = compat.first_layers_config(scheduler.model_config, _layers(config))
    runner = functools.partial(BorrowingRunner, lender=target, layers=_layers(config))
    try:
        model = PrivateModel(config, model_config, scheduler, chunk_tokens=chunk_tokens, runner=runner, voting_part=VOTING_PART)
    except Exception as error:
        raise ConfigError(f"{flag('method')} {name} cannot be used with this target: {error}") from error
    return EarlyLayers(name, f"{flag('method')} {name}", model, ranks, config, model_config)


class EarlyLayers(ModelMethod):
    """A `ModelMethod` without lookahead."""

    def check(self) -> None:
        """Some layer sees the whole prompt.

        Raises
        ------
        ConfigError
            Names the flag of the layers, or of the heads.
        """
        if not self._model.sees_whole_prompts():
            raise ConfigError(
                f"{flag('layers')} {shown(self._config)} is too few: none of these layers attends to a whole prompt."
            )
        super().check()

    @staticmethod
    def adapted(rule: Rule) -> Rule:
        """Of the prompt's last tokens only."""
        return of_last_tokens(rule)
