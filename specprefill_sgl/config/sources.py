"""Where a configuration comes from: flags beat the environment, the environment beats the file (docs/reference.md, Flags)."""

import json
import os
from collections.abc import Mapping
from typing import Any

from specprefill_sgl.config.checks import checked
from specprefill_sgl.config.settings import PREFIX, ConfigError, SpecPrefillConfig, flag

ENVIRONMENT_VARIABLE = "SGLANG_SPEC_PREFILL_CONFIG"
_FOUND_AT_START = {"calibrated", "forgetful"}  # nobody gives these


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> SpecPrefillConfig | None:
    """The configuration asked for, or None where Speculative Prefill is off.

    Parameters
    ----------
    flags : mapping
        Flags given on the command line, without the prefix; `enabled` is `--spec-prefill`, `config` the file.
    environ : mapping
        Environment; `SGLANG_SPEC_PREFILL_CONFIG` holds JSON or the path of a JSON file. Setting it switches
        Speculative Prefill on (it is the only switch `sglang.Engine` has) unless it says `"spec_prefill": false`.

    Raises
    ------
    ConfigError
        For an unreadable file, an unknown name, a wrong type or range, or settings without `--spec-prefill`.
    """
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    path = given.pop("config", None)
    from_file = _read(f"{flag('config')} {path}", _read_text(flag("config"), path)) if path is not None else {}
    text = environ.get(ENVIRONMENT_VARIABLE, "").strip()
    from_environment: dict[str, Any] = {}
    if text:
        source = text if text.startswith("{") else _read_text(ENVIRONMENT_VARIABLE, text)
        from_environment = {"enabled": True, **_read(ENVIRONMENT_VARIABLE, source)}
    merged = {**from_file, **from_environment, **given}
    enabled = merged.pop("enabled", False)
    if enabled not in (True, False):
        raise ConfigError(f"--spec-prefill must be true or false, got {enabled!r}.")
    if not enabled:
        if path is not None or given:
            name = "config" if path is not None else next(iter(given))
            raise ConfigError(f"{flag(name)} has no effect without --spec-prefill.")
        return None
    return checked(merged)


def _read_text(source: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} {path} cannot be read: {getattr(error, 'strerror', error)}.") from None


def _read(source: str, text: str) -> dict[str, Any]:
    """A JSON object with the flags' names, dashes or underscores, prefix optional, as field names."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source} must hold a JSON object.")
    known = {*SpecPrefillConfig.__struct_fields__, "enabled"} - _FOUND_AT_START
    result = {}
    for key, value in values.items():
        name = key.removeprefix("--").replace("-", "_")
        name = "enabled" if name == PREFIX else name.removeprefix(PREFIX + "_")
        if name not in known:
            raise ConfigError(f"{source} has an unknown name: {key!r}.")
        result[name] = value
    return result
