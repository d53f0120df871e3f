"""Which calibrated heads vote in front of a stage: those of the layers between the stage before it and itself.

What lies further below voted on more tokens already, and what lies above is not computed yet.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.selection.rule import Heads


def between(heads: Heads, first: int, end: int) -> Heads:
    """Those of the layers from `first` on, below `end`."""
    return tuple((layer, head) for layer, head in heads if first <= layer < end)


def check_heads(config: SpecPrefillConfig, target: Any) -> None:
    """In the launcher: calibrated heads are the target's, a ModelConfig, and some vote where the first tokens are dropped.

    Raises
    ------
    ConfigError
        One sentence that names the flag.
    """
    if (heads := config.calibrated.get("lazy")) is None:
        return
    assert config.layers is not None
    for layer, head in heads:
        if layer >= target.num_hidden_layers or head >= target.num_attention_heads:
            raise ConfigError(f"{_files(config)} cannot be used: the target has no head {head} in layer {layer}.")
    if not between(heads, 0, config.layers[0]):
        raise ConfigError(
            f"{_files(config)} cannot be used with {flag('method')} lazy: none of its heads is in a layer below "
            f"{config.layers[0]}, the first of {flag('layers')}."
        )


def unheard(config: SpecPrefillConfig) -> Iterator[str]:
    """A sentence for each stage that no calibrated head votes in front of, and for heads that vote in front of none."""
    heads, layers = config.calibrated.get("lazy", ()), config.layers or ()
    for first, end in itertools.pairwise((0, *layers)):
        if heads and not between(heads, first, end):
            yield f"no calibrated head is in the layers {first} to {end - 1}: at layer {end} the last quarter below it votes."
    if idle := sum(layer >= layers[-1] for layer, _ in heads):
        yield f"{idle} of {len(heads)} calibrated heads are in layers from {layers[-1]} on, and do not vote for lazy."


def _files(config: SpecPrefillConfig) -> str:
    return f"{flag('heads')} {','.join(config.heads)}"
