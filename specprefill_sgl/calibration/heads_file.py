"""The file of calibrated heads: which (layer, head) pairs of one draft find what a question asks for."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from specprefill_sgl.calibration.fingerprint import fingerprint, local_folder
from specprefill_sgl.config import ConfigError, flag
from specprefill_sgl.selection.rule import Heads


class HeadsFile(msgspec.Struct, kw_only=True):
    """What `python -m specprefill_sgl calibrate` writes.

    Attributes
    ----------
    fingerprint : str
        Of the draft.
    heads : tuple of (layer, head)
        Attention layers in the order of a forward, from 0; query heads of all ranks.
    provenance : dict
        How they were found.
    """

    fingerprint: str
    heads: Heads
    provenance: dict[str, Any] = {}


def save(path: Path, draft: Path, heads: Heads, provenance: dict[str, Any]) -> None:
    """Write the heads of the draft in a folder."""
    content = HeadsFile(fingerprint=fingerprint(draft), heads=heads, provenance=provenance)
    path.write_text(json.dumps(msgspec.to_builtins(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_all(paths: Sequence[str], models: Mapping[str, str]) -> dict[str, Heads]:
    """The heads in each file, by the methods whose model they were calibrated on.

    Parameters
    ----------
    paths : sequence of str
    models : mapping
        Method -> its model: a folder, or a name that is in the local cache of the hub.

    Raises
    ------
    ConfigError
        If a file cannot be read, lists nothing or a head twice, is another model's, or not the only one of its model.
    """
    found: dict[str, Heads] = {}
    fingerprint_of = functools.cache(lambda model: fingerprint(local_folder(model)))
    for path in paths:
        methods, heads = _load(path, models, fingerprint_of)
        if found.keys() & methods:
            raise ConfigError(f"{flag('heads')} {path} is the second file of the same model.")
        found |= dict.fromkeys(methods, heads)
    return found


def _load(path: str, models: Mapping[str, str], fingerprint_of: Callable[[str], str]) -> tuple[list[str], Heads]:
    name = f"{flag('heads')} {path}"
    try:
        content = msgspec.json.decode(Path(path).read_bytes(), type=HeadsFile)
        own = {method: fingerprint_of(model) for method, model in models.items()}
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{name} cannot be used: {getattr(error, 'strerror', None) or error}.") from None
    if not content.heads or len(set(content.heads)) < len(content.heads) or min(map(min, content.heads)) < 0:
        raise ConfigError(f"{name} must list (layer, head) pairs, each once.")
    methods = [method for method, one in own.items() if content.fingerprint == one]
    if not methods:
        raise ConfigError(f"{name} was calibrated on another model than {' or '.join(dict.fromkeys(models.values()))}.")
    return methods, content.heads
