"""Predictors of the shipped pair: the text they are fitted to, their second stage, and where they are."""

from pathlib import Path

_HERE = Path(__file__).parent
# method of the quality bench -> predictor; only the first is shipped (README.md says how the others are made)
PREDICTORS = {
    "kv_prediction_first_2": _HERE / "first_layers_2",
    "kv_prediction_draft": _HERE / "draft",
    "kv_prediction_draft_ridge": _HERE / "draft_ridge",
    "kv_prediction_smollm2_first_15": _HERE / "smollm2_first_15",
}
FIRST_LAYERS = ("kv_prediction_first_2", "kv_prediction_smollm2_first_15")  # without a draft
