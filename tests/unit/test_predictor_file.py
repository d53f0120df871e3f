"""A predictor's folder: what is written is read, and another model's is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from specprefill_sgl.calibration.fingerprint import fingerprint
from specprefill_sgl.config import ConfigError
from specprefill_sgl.methods.kv_prediction import predictor_file
from specprefill_sgl.methods.kv_prediction.predictor import Predictor, own_heads

HEADS, HEAD, FEATURES = 4, 8, 10


@pytest.fixture
def models(tmp_path):
    for name in ("target", "draft"):
        (tmp_path / name).mkdir()
        save_file({"weight": torch.full((64,), float(len(name)))}, tmp_path / name / "model.safetensors")
    return tmp_path / "target", tmp_path / "draft"


@pytest.fixture
def folder(models, tmp_path):
    target, draft = map(fingerprint, models)
    about = predictor_file.About(
        target=target, draft=draft, layers=0, sources=((0,), (0, 1)), kv_heads=HEADS, head_dim=HEAD, value_dim=HEAD
    )
    weights = {
        f"{kind}.{layer}.{part}": torch.randn(HEADS * HEAD, *((FEATURES,) if part == "weight" else ()))
        for kind in ("key", "value")
        for layer in (0, 1)
        for part in ("weight", "bias")
    }
    predictor_file.save(tmp_path / "predictor", about, weights)
    return str(tmp_path / "predictor"), about, weights


def test_what_is_written_is_read(folder, models):
    path, about, weights = folder
    assert predictor_file.about(path) == about
    predictor_file.check_fits(path, about, *map(str, models))
    read = predictor_file.load_weights(path)
    assert all(torch.equal(read[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("which", "role"), [(0, "target"), (1, "draft")])
def test_another_model_is_refused(folder, models, which, role):
    path, about, _ = folder
    save_file({"weight": torch.zeros(64)}, models[which] / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"--spec-prefill-predictor .* was trained for another {role} than"):
        predictor_file.check_fits(path, about, *map(str, models))


def test_a_draft_is_needed(folder, models):
    path, about, _ = folder
    with pytest.raises(ConfigError, match="needs --spec-prefill-draft-model-path"):
        predictor_file.check_fits(path, about, str(models[0]), None)


@pytest.mark.parametrize("change", [{"version": 2}, {"nonsense": 1}, {"layers": "two"}])
def test_another_format_is_refused(folder, change, tmp_path):
    path, _, _ = folder
    file = tmp_path / "predictor" / "predictor.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ConfigError, match="--spec-prefill-predictor"):
        predictor_file.about(path)


def test_a_folder_without_weights_is_refused(folder, tmp_path):
    (tmp_path / "predictor" / "predictor.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no predictor\.safetensors"):
        predictor_file.about(folder[0])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_have_the_parts_of_one(folder, ranks):
    _, about, weights = folder
    features = torch.randn(5, FEATURES)
    parts = [Predictor(about, weights, rank, ranks, torch.device("cpu")).predict(1, features) for rank in range(ranks)]
    for at, kind in enumerate(("key", "value")):
        wanted = features @ weights[f"{kind}.1.weight"].T + weights[f"{kind}.1.bias"]
        torch.testing.assert_close(torch.cat([part[at] for part in parts], dim=1).flatten(1), wanted)


def test_ranks_beyond_the_heads_share_them():
    assert [list(own_heads(2, rank, 4)) for rank in range(4)] == [[0], [0], [1], [1]]


def test_maps_of_other_heads_are_refused(folder):
    _, about, weights = folder
    with pytest.raises(ValueError, match=r"value\.1 is missing, or not of 4 heads of 8"):
        Predictor(about, {**weights, "value.1.weight": torch.zeros(8, 2)}, 0, 1, torch.device("cpu"))
