"""Calibrated heads belong to one draft; any other is refused with one sentence that names the flag."""

import json
import shutil

import pytest

from specprefill_sgl.calibration import heads_file
from specprefill_sgl.calibration.fingerprint import fingerprint
from specprefill_sgl.config import ConfigError


@pytest.fixture
def draft(pair_of):
    return pair_of("llama")[1]


def test_what_is_saved_is_loaded(draft, tmp_path):
    heads_file.save(tmp_path / "heads.json", draft, ((1, 2), (0, 3)), {"prompts": 5})
    assert heads_file.load_all([str(tmp_path / "heads.json")], {"draft": str(draft)})["draft"] == ((1, 2), (0, 3))


def test_a_file_is_for_every_method_of_its_model(draft, pair_of, tmp_path):
    heads_file.save(tmp_path / "heads.json", draft, ((1, 2),), {})
    models = {"early-layers": str(draft), "draft": str(pair_of("llama")[0]), "lazy": str(draft)}
    found = heads_file.load_all([str(tmp_path / "heads.json")], models)
    assert found == {"early-layers": ((1, 2),), "lazy": ((1, 2),)}
    with pytest.raises(ConfigError, match="is the second file of the same model"):
        heads_file.load_all([str(tmp_path / "heads.json")] * 2, models)


def test_a_copy_is_the_same_draft_and_one_changed_weight_is_another(draft, pair_of, tmp_path):
    copy = shutil.copytree(draft, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(draft) != fingerprint(pair_of("llama")[0])
    weights = next(copy.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint(copy) != fingerprint(draft)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "0"}, "another model"),
        ({"heads": []}, "must list"),
        ({"heads": [[1, 2], [1, 2]]}, "must list"),
        ({"heads": [[1, -2]]}, "must list"),
        ({"heads": [[1]]}, "cannot be used"),
        ({"heads": "all"}, "cannot be used"),
        (None, "cannot be used"),
    ],
)
def test_other_files_are_refused(change, said, draft, tmp_path):
    path = tmp_path / "heads.json"
    if change is not None:
        heads_file.save(path, draft, ((1, 2),), {})
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=said) as error:
        heads_file.load_all([str(path)], {"draft": str(draft)})["draft"]
    assert str(error.value).startswith("--spec-prefill-heads ")


def test_a_draft_that_is_not_here(draft, tmp_path):
    heads_file.save(tmp_path / "heads.json", draft, ((1, 2),), {})
    with pytest.raises(ConfigError, match="no local folder"):
        heads_file.load_all([str(tmp_path / "heads.json")], {"draft": str(tmp_path / "nowhere")})["draft"]
