"""`--spec-prefill-layers`, as the methods that take the target apart read it."""

from typing import Any

from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag


def shown(config: SpecPrefillConfig) -> str:
    """As a command line has them."""
    return ",".join(map(str, config.layers or ()))


def check_layers(config: SpecPrefillConfig, target: Any) -> None:
    """Refuse layers that a target, a ModelConfig, does not have, or that would be all it has.

    Raises
    ------
    ConfigError
        One sentence that names the flag.
    """
    assert config.layers is not None
    if config.layers[-1] >= target.num_hidden_layers:
        raise ConfigError(f"{flag('layers')} must be less than the target's {target.num_hidden_layers}, got {shown(config)}.")
