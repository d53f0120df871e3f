"""The pair's predictors are the pair's, small, and say how they were made."""

import pytest

from benchmarks import kv_prediction, launch
from specprefill_sgl.methods.kv_prediction import predictor_file
from specprefill_sgl.methods.kv_prediction.predictor import Predictor

SHIPPED = ("kv_prediction_first_2",)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_predictor_fits_the_pair(name):
    folder = kv_prediction.PREDICTORS[name]
    about = predictor_file.about(str(folder))
    assert (about.draft is None) == (name in kv_prediction.FIRST_LAYERS)
    predictor_file.check_fits(str(folder), about, str(launch.TARGET), str(launch.DRAFT))
    assert about.provenance["command"].startswith("python -m specprefill_sgl train-predictor")
    assert (folder / "predictor.safetensors").stat().st_size < 5e6
    import torch

    predictor = Predictor(about, predictor_file.load_weights(str(folder)), 0, 1, torch.device("cpu"))
    assert {predictor.features(layer) for layer in about.predicted} == {384 if about.draft is None else 2 * 2 * 192}
