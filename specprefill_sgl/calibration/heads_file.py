"""The file of calibrated heads: which (layer, head) pairs of one draft find what a question asks for."""

import json
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


def load(path: str, draft_path: str) -> Heads:
    """The heads in a file, for a draft: a folder, or a name that is in the local cache of the hub.

    Raises
    ------
    ConfigError
        If the file cannot be read, lists nothing, a head twice, or is another draft's.
    """
    name = f"{flag('heads')} {path}"
    try:
        content = msgspec.json.decode(Path(path).read_bytes(), type=HeadsFile)
        own = fingerprint(local_folder(draft_path))
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{name} cannot be used: {getattr(error, 'strerror', None) or error}.") from None
    if not content.heads or len(set(content.heads)) < len(content.heads) or min(map(min, content.heads)) < 0:
        raise ConfigError(f"{name} must list (layer, head) pairs, each once.")
    if content.fingerprint != own:
        raise ConfigError(f"{name} was calibrated on another draft than {draft_path}.")
    return content.heads
