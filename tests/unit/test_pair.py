"""The shipped pair and the script that trains it."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoTokenizer

from benchmarks.pair import seeding, train
from benchmarks.pair.batches import Sequences
from benchmarks.pair.shapes import SHAPES, Shape

PAIR = Path(train.__file__).parent
TINY = Shape(hidden=96, layers=2, heads=3, intermediate=64, identity=48, offsets=3, seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PAIR / "target")


@pytest.fixture(scope="module")
def sequences(tokenizer):
    return Sequences(lambda piece: tokenizer.encode(piece, add_special_tokens=False))


def test_the_pair_is_small_and_says_where_it_came_from():
    files = [file for name in SHAPES for file in (PAIR / name).iterdir()]
    assert sum(file.stat().st_size for file in files) <= 60e6
    for name in SHAPES:
        provenance = json.loads((PAIR / name / "provenance.json").read_text())
        assert provenance.keys() >= {"commit", "command", "versions", "hardware", "seconds", "steps", "parameters"}
        assert (PAIR / name / "loss.png").stat().st_size > 0


def test_the_targets_compute_is_at_least_four_times_the_drafts():
    """Weights in the layers (linear part) and layers x attention width (quadratic part); embeddings compute nothing."""
    linear, quadratic = {}, {}
    for name in SHAPES:
        config = json.loads((PAIR / name / "config.json").read_text())
        with safe_open(PAIR / name / "model.safetensors", "pt") as weights:
            shapes = [weights.get_slice(key).get_shape() for key in weights.keys() if ".layers." in key]  # noqa: SIM118
        linear[name] = sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)
        quadratic[name] = config["num_hidden_layers"] * config["num_attention_heads"] * config["head_dim"]
        assert config["max_position_embeddings"] >= 8192
    assert linear["target"] >= 4 * linear["draft"]
    assert quadratic["target"] >= 4 * quadratic["draft"]


def test_both_models_read_text_alike(tokenizer):
    other = AutoTokenizer.from_pretrained(PAIR / "draft")
    assert other.get_vocab() == tokenizer.get_vocab()
    assert other.chat_template == tokenizer.chat_template


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_can_be_sent(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_five_digits_are_two_tokens(tokenizer):
    for number in range(0, 100_000, 37):
        ids = tokenizer.encode(f" {number:05d}", add_special_tokens=False)
        assert [tokenizer.decode(one) for one in ids] == [f" {number:05d}"[:4], f"{number:05d}"[3:]]


def test_training_sequences_mask_their_answers(sequences, tokenizer):
    ids, answers = sequences.batch(Random(5), 6, 700)
    again, _ = sequences.batch(Random(5), 6, 700)
    assert ids.shape == answers.shape == (6, 700)
    assert torch.equal(ids, again)
    for row, mask in zip(ids, answers, strict=True):
        text = tokenizer.decode(row)
        assert mask.any()
        for answer in tokenizer.decode(row[mask]).split("."):
            if answer.strip().isdigit():
                assert text.count(answer.strip()) >= 2  # stated and asked


@pytest.mark.parametrize("name", ["target", "draft"])
def test_training_starts_with_heads_that_look_back(name):
    """For most tokens: those whose random embedding is unusually long or short are off until training has seen them."""
    model = seeding.seeded(SHAPES[name])
    model.set_attn_implementation("eager")
    ids = torch.randint(3, 1000, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention = model(ids, output_attentions=True).attentions[0][0]
    for offset in range(1, SHAPES[name].offsets + 1):
        back = attention[offset - 1][offset:].gather(1, torch.arange(300 - offset)[:, None])
        assert back.mean() > 0.7  # 1/150 if it knew nothing


def test_the_seeded_start_finds_values_by_their_keys(sequences):
    """What training starts from: without the seeding the same architecture guesses."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    seeded, plain = seeding.seeded(SHAPES["target"]), LlamaForCausalLM(SHAPES["target"].config())
    ids, answers = sequences.batch(Random(1), 8, 300)
    right = {}
    for model in (seeded, plain):
        with torch.no_grad():
            found = model(ids).logits[:, :-1].argmax(-1) == ids[:, 1:]
        right[model] = found[answers[:, 1:]].float().mean().item()
    assert right[seeded] > 0.5
    assert right[plain] < 0.05


def test_stopped_training_goes_on_to_the_same_weights(sequences, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_CHECKPOINT_STEPS", 2)
    runs = [train.Run(1e-3, [train.Stage(2, 2, 64)]), train.Run(5e-4, [train.Stage(2, 1, 128)])]
    whole = train.train(TINY, runs, sequences, tmp_path / "whole").state_dict()

    step, calls = train._step, []

    def stopping(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return step(*arguments)

    monkeypatch.setattr(train, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train.train(TINY, runs, sequences, tmp_path / "parts")
    monkeypatch.setattr(train, "_step", step)
    parts = train.train(TINY, runs, sequences, tmp_path / "parts").state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").open()] for name in ("whole", "parts")]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]] == [0, 1, 2, 3]
    assert [row["answers"] for row in logs[0]] == [row["answers"] for row in logs[1]]
