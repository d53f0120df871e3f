"""Which drafts may read which targets, with real tokenizers in folders."""

import json
import logging
from types import SimpleNamespace

import pytest

from specprefill_sgl.config import ConfigError, SpecPrefillConfig
from specprefill_sgl.methods import registry, vocabulary
from tests.support import other_tokenizer, tiny_models

SIZE = tiny_models.VOCABULARY


@pytest.fixture
def folders(tmp_path):
    """A target's tokenizer and a copy of it."""
    for name in ("target", "draft"):
        tiny_models.tokenizer().save_pretrained(tmp_path / name)
    return tmp_path / "target", tmp_path / "draft"


def _check(target, draft, *, draft_size=SIZE, how="target", skip=False):
    config = SpecPrefillConfig(draft_model_path=str(draft), draft_tokenizer=how)
    files = {"tokenizer_path": None, "model_path": str(target), "trust_remote_code": False, "revision": None}
    args = SimpleNamespace(**files, skip_tokenizer_init=skip, disaggregation_mode="null", smg_grpc_mode=False)
    vocabulary.check_vocabulary(config, args, SimpleNamespace(vocab_size=SIZE), SimpleNamespace(vocab_size=draft_size))
    return config, args


def _add(folder, *tokens):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)


def test_the_same_tokenizer_is_silent(folders, caplog):
    with caplog.at_level(logging.WARNING):
        _check(*folders)
    assert caplog.text == ""


@pytest.mark.parametrize("whose", [0, 1], ids=["target", "draft"])
def test_added_tokens_may_differ_with_a_warning(folders, caplog, whose):
    """As between Qwen2.5 and Qwen3: the same base vocabulary."""
    _add(folders[0], "<tool>")
    _add(folders[1], "<tool>")
    _add(folders[whose], "<think>")
    with caplog.at_level(logging.WARNING):
        _check(*folders)
    assert "differs from the target's in added tokens: <think>." in caplog.text


def test_another_base_vocabulary_is_refused_with_the_way_out(folders):
    path = folders[1] / "tokenizer.json"
    content = json.loads(path.read_text())
    one, other = list(content["model"]["vocab"])[300:302]
    words = content["model"]["vocab"]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"\(2 tokens\); with --spec-prefill-draft-tokenizer own"):
        _check(*folders)
    _check(*folders, how="own")


def test_its_own_may_be_of_any_size(folders, tmp_path):
    other_tokenizer.tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="vocabulary of 400 differs from the target's of 512"):
        _check(folders[0], tmp_path / "other", draft_size=400)
    _check(folders[0], tmp_path / "other", draft_size=400, how="own")


def test_what_reads_in_its_own_is_what_was_checked(folders, tmp_path):
    """Not made again when the first request comes."""
    other_tokenizer.tokenizer().save_pretrained(tmp_path / "other")
    checked = vocabulary._own_tokens.cache_info().misses
    config, args = _check(folders[0], tmp_path / "other", draft_size=400, how="own")
    readers = registry.token_readers(config, args)
    assert vocabulary._own_tokens.cache_info().misses == checked + 1
    assert readers["draft"].read(tiny_models.tokenizer().encode("one")) is not None


def test_its_own_needs_text(folders):
    with pytest.raises(ConfigError, match="own cannot be combined with --skip-tokenizer-init"):
        _check(*folders, how="own", skip=True)


@pytest.mark.parametrize(("which", "said"), [(0, "the target has no tokenizer"), (1, "the draft must have a fast tokenizer")])
def test_its_own_needs_both_tokenizers(folders, which, said):
    for file in folders[which].iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match=f"--spec-prefill-draft-tokenizer own: {said}"):
        _check(*folders, how="own")
