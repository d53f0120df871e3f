"""The folder of a predictor: `predictor.json` says whose KV is computed from whose, `predictor.safetensors` how."""

import json
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file

from specprefill_sgl.calibration.fingerprint import fingerprint, local_folder
from specprefill_sgl.config import ConfigError, flag

VERSION = 1
_ABOUT, _WEIGHTS = "predictor.json", "predictor.safetensors"
Source = tuple[int, ...]


class About(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What `python -m specprefill_sgl train-predictor` writes beside the weights.

    Attributes
    ----------
    version : int
    target : str
        Fingerprint of its weights.
    draft : str or None
        The same of the auxiliary model; None: the target's own first layers are it.
    layers : int
        So many first layers of the target have their own KV, not a prediction; 0 with a draft.
    sources : tuple of tuple of int
        Of each other layer of the target, in order, the draft's layers whose keys and values it is computed from; empty: what
        leaves the target's first layers.
    kv_heads, head_dim, value_dim : int
        Of the target.
    key_r2, value_r2 : tuple of float
        Share of the variance that is explained, of each predicted layer, on tokens that it was not fitted on.
    provenance : dict
    """

    version: int = VERSION
    target: str
    draft: str | None
    layers: int
    sources: tuple[Source, ...]
    kv_heads: int
    head_dim: int
    value_dim: int
    key_r2: tuple[float, ...] = ()
    value_r2: tuple[float, ...] = ()
    provenance: dict[str, Any] = {}

    @property
    def predicted(self) -> range:
        """The target's layers whose KV is computed."""
        return range(self.layers, self.layers + len(self.sources))


def save(folder: Path, about: About, weights: dict[str, torch.Tensor]) -> None:
    """Write both files.

    Parameters
    ----------
    folder : Path
    about : About
    weights : dict
        `key.{layer}.weight` [kv_heads * head_dim, features] and `key.{layer}.bias` of each predicted layer, `value` alike;
        layers are counted in the target.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / _WEIGHTS)
    text = json.dumps(msgspec.to_builtins(about), indent=1, allow_nan=False)
    (folder / _ABOUT).write_text(text + "\n", encoding="utf-8")


def about(folder: str) -> About:
    """Without the weights.

    Raises
    ------
    ConfigError
        Names the flag of the predictor.
    """
    name = f"{flag('predictor')} {folder}"
    try:
        found = msgspec.json.decode((Path(folder) / _ABOUT).read_bytes(), type=About)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{name} cannot be used: {getattr(error, 'strerror', None) or error}.") from None
    if found.version != VERSION:
        raise ConfigError(f"{name} is of version {found.version} of the format, not {VERSION}.")
    if not (Path(folder) / _WEIGHTS).is_file():
        raise ConfigError(f"{name} has no {_WEIGHTS}.")
    return found


def check_fits(folder: str, found: About, target: str, draft: str | None) -> None:
    """Refuse a predictor of other models: folders, or names in the hub's local cache.

    Raises
    ------
    ConfigError
        Names the flag of the predictor, or of the draft it needs.
    """
    name = f"{flag('predictor')} {folder}"
    if found.draft is not None and draft is None:
        raise ConfigError(f"{name} computes from a draft: it needs {flag('draft_model_path')}.")
    for role, wanted, path in (("target", found.target, target), ("draft", found.draft, draft)):
        if wanted is None or path is None:
            continue
        try:
            own = fingerprint(local_folder(path))
        except FileNotFoundError as error:
            raise ConfigError(f"{name} cannot be checked: {error}.") from None
        if own != wanted:
            raise ConfigError(f"{name} was trained for another {role} than {path}.")


def load_weights(folder: str) -> dict[str, torch.Tensor]:
    """As given to `save`.

    Raises
    ------
    ConfigError
        If they cannot be read.
    """
    try:
        return load_file(Path(folder) / _WEIGHTS)
    except Exception as error:
        raise ConfigError(f"{flag('predictor')} {folder} cannot be read: {error}.") from error
