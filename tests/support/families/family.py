"""What a tiny model of a family is made of and served with."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple


class Family(NamedTuple):
    """One model.

    Attributes
    ----------
    model_class, config_class : str
        Of transformers.
    settings : dict
        Of its configuration, beside those all models share (which go into `text_config` where there is one).
    written : dict
        Entries of config.json that SGLang reads and transformers does not write.
    options : tuple of str
        Server flags it needs as a target.
    env : dict
        Environment its servers need, as target or draft.
    tolerance : float
        Largest difference of a logprob to transformers, in float32.
    also : callable or None
        Writes what else belongs into the model's directory.
    """

    model_class: str
    config_class: str
    settings: dict
    written: Mapping = MappingProxyType({})
    options: tuple[str, ...] = ()
    env: Mapping[str, str] = MappingProxyType({})
    tolerance: float = 1e-4
    also: Callable[[Path], None] | None = None


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
