"""What cannot work stops the server with a sentence that names the flag and a status that is not zero."""

import json
import shutil

import pytest

from specprefill_sgl.calibration import heads_file
from tests.support.families import FAMILIES
from tests.support.faults import Faults, plugin_on_path
from tests.support.server import refused, sparse_options


@pytest.fixture(scope="module")
def altered(pair_of, tmp_path_factory):
    """Makes a copy of the draft with a change."""
    _, draft = pair_of("llama")

    def make(name, change):
        copy = tmp_path_factory.mktemp("altered") / name
        shutil.copytree(draft, copy)
        change(copy)
        return copy

    return make


def _smaller_vocabulary(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] - 64}))


def _swapped_tokens(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _no_weights(folder):
    for file in folder.glob("*.safetensors"):
        file.unlink()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--spec-prefill"], "--spec-prefill-method draft needs --spec-prefill-draft-model-path"),
        (["--spec-prefill-keep-ratio", "0.5"], "--spec-prefill-keep-ratio has no effect without --spec-prefill"),
        (sparse_options("/no/such/draft"), "--spec-prefill-draft-model-path /no/such/draft does not exist"),
        (sparse_options("DRAFT", keep_ratio=1.5), "--spec-prefill-keep-ratio must be in (0, 1], got 1.5"),
        (sparse_options("DRAFT", keep_ratio=0), "--spec-prefill-keep-ratio must be in (0, 1], got 0"),
        ([*sparse_options("DRAFT"), "--radix-cache-backend", "other"], "--radix-cache-backend"),
        pytest.param(  # what tests/unit/test_refused_early_layers.py shows without a process
            sparse_options(None, method="early-layers", layers=3),
            "--spec-prefill-layers must be less than the target's 3, got 3",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_command_lines(options, sentence, pair_of):
    target, draft = pair_of("llama")
    status, output = refused(target, *[str(draft) if word == "DRAFT" else word for word in options])
    assert status != 0
    assert sentence in output


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_smaller_vocabulary, "the draft's vocabulary of 448 differs from the target's of 512"),
        (_swapped_tokens, "the draft's tokenizer differs from the target's (2 tokens)"),
        (_no_weights, "the draft could not be loaded"),
    ],
)
def test_drafts_that_do_not_fit(change, sentence, altered, pair_of):
    status, output = refused(pair_of("llama")[0], *sparse_options(altered(change.__name__, change)))
    assert status != 0
    assert "--spec-prefill-draft-model-path" in output
    assert sentence in output


def test_a_draft_that_fails_on_its_first_prompt(pair_of, tmp_path):
    """Else every request would be served dense, for ever."""
    target, draft = pair_of("llama")
    faults = Faults(tmp_path)
    faults.switch("score")
    status, output = refused(target, *sparse_options(draft), env=faults.env)
    assert status != 0
    assert "injected scoring fault" in output
    assert f"--spec-prefill-draft-model-path {draft}: the draft failed on its first prompt" in output


@pytest.mark.slow
@pytest.mark.parametrize(("target", "layers"), [("mellum", 2), ("qwen3_5", 3)])
def test_first_layers_that_see_no_whole_prompt(target, layers, model_of):
    """Two with windows, three without attention."""
    options = sparse_options(None, method="early-layers", layers=layers)
    status, output = refused(model_of(target), *options, env=dict(FAMILIES[target].env))
    assert status != 0
    assert f"--spec-prefill-layers {layers} is too few: none of these layers attends to a whole prompt." in output


@pytest.mark.slow
def test_heads_that_are_not_in_the_first_layers(pair_of, tmp_path):
    target, file = pair_of("llama")[0], tmp_path / "heads.json"
    heads_file.save(file, target, ((1, 0), (2, 1)), {})
    status, output = refused(target, *sparse_options(None, method="early-layers", layers=2, heads=file))
    assert status != 0
    assert f"--spec-prefill-heads {file} cannot be used: its model has no head 1 in attention layer 2." in output


@pytest.mark.slow
def test_heads_that_lazy_would_not_ask(pair_of, tmp_path):
    target, file = pair_of("llama")[0], tmp_path / "heads.json"
    heads_file.save(file, target, ((2, 1),), {})
    status, output = refused(target, *sparse_options(None, method="lazy", layers=2, heads=file))
    assert status != 0
    assert f"--spec-prefill-heads {file} cannot be used with --spec-prefill-method lazy: none of its heads" in output


def test_a_hook_that_did_not_apply(pair_of, tmp_path):
    """SGLang logs and swallows hook errors; here another plugin takes a hook target away before hooks are applied."""
    env = plugin_on_path(
        tmp_path,
        "breaker",
        "def register():\n"
        "    from sglang.srt.model_executor.forward_batch_info import ForwardBatch\n"
        "    from sglang.srt.plugins.hook_registry import HookRegistry\n"
        "    apply = HookRegistry._apply_target.__func__\n"
        "    def broken(cls, target, hooks):\n"
        "        if target.endswith('ForwardBatch.init_new'):\n"
        "            raise AttributeError('gone in this release')\n"
        "        apply(cls, target, hooks)\n"
        "    HookRegistry._apply_target = classmethod(broken)\n",
    )
    target, draft = pair_of("llama")
    status, output = refused(target, *sparse_options(draft), env=env)
    assert status != 0
    assert "--spec-prefill cannot be served" in output
    assert "ForwardBatch.init_new could not be hooked" in output
