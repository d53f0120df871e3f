"""What a scheduler process is to fit, instead of serving: told to it by the environment, as `train-predictor` starts it."""

import os
from pathlib import Path

import msgspec

from specprefill_sgl.methods.kv_prediction.predictor_file import About

ENVIRONMENT_VARIABLE = "SPECPREFILL_TRAIN_PREDICTOR"  # names a file with a `Plan`


class Plan(msgspec.Struct, kw_only=True):
    """What to fit.

    Attributes
    ----------
    about : About
        Whose KV from whose.
    pieces : str
        A NumPy archive: `ids` of all pieces, one after the other, and their `lengths`.
    ridge : float
    dtype : str
        Of the weights in the file.
    out : str
        The predictor's folder.
    """

    about: About
    pieces: str
    ridge: float
    dtype: str
    out: str


def plan() -> Plan | None:
    """Of this process; None where a predictor is served."""
    path = os.environ.get(ENVIRONMENT_VARIABLE)
    return None if path is None else msgspec.json.decode(Path(path).read_bytes(), type=Plan)
