"""`train-predictor`: with the target itself as draft a line fits its own KV, and serves it."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from specprefill_sgl.methods.kv_prediction import predictor_file
from tests.support import reference
from tests.support.server import command, serve, sparse_options
from tests.support.tiny_models import prompt_ids

pytestmark = pytest.mark.slow
TEXT = Path(sysconfig.get_paths()["stdlib"], "argparse.py")


def _train(target, out, *options):
    flags = command(target, *options)[3:]  # of the server
    settings = ["--text", TEXT, "--out", out, "--tokens", 20000, "--length", 500, "--ridge", 1e-9, "--weights", "float32"]
    words = [sys.executable, "-m", "specprefill_sgl", "train-predictor", *map(str, settings), *flags]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


def test_the_target_predicts_itself_and_answers_as_dense(pair_of, hugging_face, tmp_path):
    target, _ = pair_of("llama")
    done = _train(target, tmp_path / "predictor", "--spec-prefill-draft-model-path", str(target))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "pieces of text" in done.stderr  # the progress bar
    about = predictor_file.about(str(tmp_path / "predictor"))
    assert min(*about.key_r2, *about.value_r2) > 0.9999
    assert about.sources == ((0,), (1,), (2,))
    options = sparse_options(target, method="kv-prediction", predictor=tmp_path / "predictor")
    with serve(tmp_path, target, *options) as server:
        for length in (200, 1100):
            ids = prompt_ids(length, seed=length)
            reply = server.generate(ids, custom={"spec_prefill": True})
            assert reply["meta_info"]["spec_prefill"]["predicted_tokens"] == length - 32
            assert reply["output_ids"] == reference.greedy(hugging_face(target), ids, range(length), length, 8)[0]


def test_first_layers_explain_a_part(pair_of, tmp_path):
    target, _ = pair_of("qwen3")
    done = _train(target, tmp_path / "predictor", "--first-layers", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    about = predictor_file.about(str(tmp_path / "predictor"))
    assert (about.draft, about.layers, about.sources) == (None, 1, ((),))
    assert 0 < about.key_r2[0] <= 1


def test_short_text_is_refused(pair_of, tmp_path):
    target, _ = pair_of("llama")
    (tmp_path / "short.txt").write_text("nothing much")
    words = [sys.executable, "-m", "specprefill_sgl", "train-predictor", "--text", str(tmp_path / "short.txt")]
    words += ["--out", str(tmp_path / "predictor"), "--first-layers", "1", "--model-path", str(target), "--device", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "ten are needed" in done.stderr
