"""Types and ranges of settings."""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from specprefill_sgl.config.settings import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.selection.rule import CHANGEABLE, expected

_PATHS = ("draft_model_path", "predictor")
_LOWEST = {
    **{"min_tokens": 0, "tail": 1, "backlog": 1, "keep_first": 0, "keep_last": 0, "aux_cache_bytes": 1},
    **{"revive_every": 0, "revive_chunks": 1, "revive_max": 1, "backfill_tokens": 1, "backfill_decodes": 1},
}
_MOST = 2**31 - 1  # of tokens, times and chunks
_MOST_BYTES = 2**63 - 1


def checked(values: dict[str, Any]) -> SpecPrefillConfig:
    """The configuration with these settings, as a command line or JSON gives them.

    Raises
    ------
    ConfigError
        For a wrong type, or a value out of range.
    """
    values = _from_text(values)
    try:
        config = msgspec.convert(values, SpecPrefillConfig)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("$.")[2].rstrip("`") if "$." in str(error) else "config"
        raise ConfigError(f"{flag(field)}: {error}.") from None
    paths = {name: os.path.expanduser(path) for name in _PATHS if (path := getattr(config, name)) is not None}
    config = msgspec.structs.replace(config, **paths)
    if config.keep_by_layer and "keep_ratio" not in values:
        config = msgspec.structs.replace(config, keep_ratio=config.keep_by_layer[-1])
    _check_names(config)
    _check_ratios(config)
    _check_layers(config)
    _check_numbers(config)
    return config


def _from_text(values: dict[str, Any]) -> dict[str, Any]:
    """Lists and truth values of a command line, as what they are."""
    values = dict(values)
    for name in ("method", "protect_roles", "heads"):
        if isinstance(text := values.get(name), str):
            values[name] = [one.strip() for one in text.split(",")]
    for name, number in (("layers", int), ("keep_by_layer", float)):
        if name in values:
            values[name] = _numbers(name, values[name], number)
    if (text := values.get("ignore_tail")) in ("true", "false"):
        values["ignore_tail"] = text == "true"
    return values


def _check_names(config: SpecPrefillConfig) -> None:
    if len(set(config.method)) < max(len(config.method), 1):
        _out_of_range("method", "names, each once", ",".join(config.method))
    if not all(config.protect_roles):
        _out_of_range("protect_roles", "roles separated by commas", ",".join(config.protect_roles))


def _check_ratios(config: SpecPrefillConfig) -> None:
    if not (math.isfinite(config.keep_ratio) and 0 < config.keep_ratio <= 1):
        _out_of_range("keep_ratio", "in (0, 1]", config.keep_ratio)
    if config.keep_min is not None and not 0 < config.keep_min <= config.keep_ratio:
        _out_of_range("keep_min", f"in (0, {flag('keep_ratio')}]", config.keep_min)


def _check_layers(config: SpecPrefillConfig) -> None:
    layers, ratios = config.layers, config.keep_by_layer
    if layers is not None and not (layers and layers[0] >= 2 and _ascend(layers, below=_MOST)):
        _out_of_range("layers", "at least 2, and ascend", ",".join(map(str, layers)))
    if ratios is None:
        return
    shown = ",".join(map(str, ratios))
    if layers is None or len(ratios) != len(layers):
        _out_of_range("keep_by_layer", f"one number for each of {flag('layers')}", shown)
    if not _ascend((0.0, *reversed(ratios)), below=1.0):
        _out_of_range("keep_by_layer", "in (0, 1), and descend", shown)
    if config.keep_ratio != ratios[-1]:
        _out_of_range("keep_by_layer", f"{flag('keep_ratio')} {config.keep_ratio} at the last layer", shown)


def _check_numbers(config: SpecPrefillConfig) -> None:
    for name, lowest in _LOWEST.items():
        most = _MOST_BYTES if name.endswith("_bytes") else _MOST
        if (value := getattr(config, name)) is not None and not lowest <= value <= most:
            _out_of_range(name, f"at least {lowest}", value)
    for name in CHANGEABLE:
        if (value := getattr(config, name)) is not None and (wanted := expected(name, value)) is not None:
            _out_of_range(name, wanted, value)
    if config.draft_max_tokens is not None and config.draft_max_tokens <= config.most_lookahead:
        _out_of_range("draft_max_tokens", f"more than {config.most_lookahead}", config.draft_max_tokens)


def _numbers(name: str, value: Any, kind: Callable[[str], float]) -> Any:
    """A list of one number, or of those in a command line's text; what is neither is left to be refused."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, str):
        return value
    try:
        return [kind(one) for one in value.split(",")]
    except ValueError:
        _out_of_range(name, "numbers separated by commas", value)


def _ascend(numbers: Sequence[float], below: float) -> bool:
    return all(one < other for one, other in itertools.pairwise((*numbers, below)))


def _out_of_range(name: str, expected: str, value: Any) -> NoReturn:
    raise ConfigError(f"{flag(name)} must be {expected}, got {value}.")
