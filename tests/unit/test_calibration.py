"""Calibration: the reader sees what a model sees, a planted head is found, the command writes a file that the server reads."""

import json

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specprefill_sgl.calibration import heads_file, kinds, ranking
from specprefill_sgl.calibration.reader import LayerReading, read
from specprefill_sgl.cli import calibrate
from specprefill_sgl.selection.rule import preset
from tests.support import reference
from tests.support.tiny_models import prompt_ids

RULE = msgspec.structs.replace(preset("best", ()), window=16, pool_kernel=5, keep_last=8)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])  # plain, caps, sinks and windows
def test_votes_of_a_reading_are_the_references(name, pair_of, model_of, hugging_face):
    model = hugging_face(model_of(name) if name == "gpt_oss" else pair_of(name)[1])
    ids = prompt_ids(100, seed=5)
    layers = read(model, ids, RULE.window).layers
    whole = [number for number, layer in enumerate(layers) if layer.window is None or layer.window >= len(ids)]
    evidence = np.zeros(len(ids), dtype=bool)
    evidence[20:33] = True
    for number in whole:
        got = ranking._votes(layers[number], evidence, RULE)
        for head, votes in enumerate(got):
            asked = {"lookahead": 1, "window": 16, "pool_kernel": 5, "ignore_first": 4, "ignore_last": 8}
            wanted = reference.draft_votes(model, ids, **asked, heads=[(number, head)])["window"].amax(dim=0)[20:33].mean()
            assert votes == pytest.approx(float(wanted), rel=1e-3)


def test_what_follows_a_cache_is_as_one_forward(pair_of, hugging_face):
    model, ids = hugging_face(pair_of("llama")[1]), prompt_ids(80, seed=5)
    whole = read(model, ids, 10)
    rest = read(model, ids[70:], 10, read(model, ids[:70], 5).cache)
    torch.testing.assert_close(rest.logits, whole.logits, atol=1e-4, rtol=1e-4)
    for one, other in zip(rest.layers, whole.layers, strict=True):
        torch.testing.assert_close(one.queries, other.queries, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.keys, other.keys, atol=1e-4, rtol=1e-4)


def test_a_head_that_looks_at_the_evidence_is_found():
    """One query of one head points at the evidence's keys."""
    torch.manual_seed(0)
    layers = [LayerReading(torch.randn(16, 4, 32), torch.randn(200, 2, 32), 32**-0.5, 0.0, None, None, n) for n in range(3)]
    evidence = np.zeros(200, dtype=bool)
    evidence[90:100] = True
    layers[1].keys[90:100, 1] = layers[1].queries[-3, 2] * 1.5
    mean = np.stack([ranking._votes(layer, evidence, RULE) for layer in layers])
    assert ranking.best_heads(mean, 8)[0] == (1, 2)


def test_heads_are_at_most_so_many_and_half_as_good_as_the_best():
    mean = np.array([[0.1, 0.9, np.nan], [0.5, 0.2, 0.46]])
    assert ranking.best_heads(mean, 8) == ((0, 1), (1, 0), (1, 2))
    assert ranking.best_heads(mean, 2) == ((0, 1), (1, 0))
    assert ranking.best_heads(mean, 8, layers=1) == ((0, 1),)
    assert ranking.best_heads(mean, 8, layers=0) == ()


def test_kinds_count_alike():
    found = [ranking.Found(kind, 9, np.array([[votes]]), (0,)) for kind, votes in (("a", 1.0), ("a", 3.0), ("b", 8.0))]
    assert ranking.scores(found).tolist() == [[5.0]]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_prompts_hold_their_evidence_once_and_ask_for_it(kind):
    found = kinds.prompts(kind, 6, 300, kinds.plain)
    assert found == kinds.prompts(kind, 6, 300, kinds.plain)
    assert len({known.prompt for known in found}) == 6
    for known in found:
        body, _, question = known.prompt.rpartition("\n\n")
        assert len(known.evidence) == {"three keys": 3, "two hops": 2}.get(kind, 1)
        assert all(body.count(part) == 1 for part in known.evidence)
        asked_for = {"facts": 0, "two hops": 3}.get(kind, 5)  # a word of the last statement
        assert kind == "quotation" or known.evidence[-1].split()[asked_for] in question


def test_a_text_is_the_haystack():
    text = "Too short. " + " ".join(f"Sentence {number} of them is long enough to be taken as one!" for number in range(50))
    (known,) = kinds.prompts("one key", 1, 60, kinds.from_text(text))
    assert known.prompt.count("of them is long enough to be taken as one.") > 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("This sentence here is long enough to be taken as one. " * 99, "1 sentences"),
        ("".join(f"The very same sentence but for the word at its start, {n}. " for n in range(9)), "9 sentences"),
    ],
)
def test_a_text_of_too_few_sentences_is_refused(text, said, pair_of, tmp_path):
    file = tmp_path / "text"
    file.write_text(text)
    with pytest.raises(SystemExit, match=said):
        calibrate.main([str(pair_of("llama")[1]), "--out", str(tmp_path / "h"), "--text", str(file)])


def test_sentences_that_end_alike_are_no_quotation():
    filler = kinds.from_text(
        " ".join(f"{n} but for the word at its start all these sentences are the same." for n in range(60))
    )
    with pytest.raises(ValueError, match="unlike all others"):
        kinds.prompts("quotation", 1, 200, filler)


def test_heads_of_windowed_layers_are_not_chosen_where_others_see_everything(monkeypatch, pair_of):
    """Their window reaches over the short prompts of the calibration, not over those to come."""
    folder = pair_of("llama")[1]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (known,) = kinds.prompts("one key", 1, 60, kinds.plain)
    read = ranking.read

    def windowed(*arguments):
        forward = read(*arguments)
        return forward._replace(layers=[forward.layers[0]._replace(window=10**6), *forward.layers[1:]])

    monkeypatch.setattr(ranking, "read", windowed)
    votes = ranking.find(model, tokenizer, known, preset("best", ())).votes
    assert np.isnan(votes[0]).all()
    assert not np.isnan(votes[1:]).any()


def test_the_command_writes_what_a_server_with_this_draft_reads(pair_of, tmp_path, capsys):
    draft, out = pair_of("llama")[1], tmp_path / "heads.json"
    calibrate.main([str(draft), "--out", str(out), "--prompts-per-kind", "1", "--tokens", "150", "--dtype", "float32"])
    chosen = heads_file.load_all([str(out)], {"draft": str(draft)})["draft"]
    assert 1 <= len(chosen) <= 8
    assert len(set(chosen)) == len(chosen)
    provenance = json.loads(out.read_text())["provenance"]
    assert provenance["prompts"] == 5
    assert set(provenance["held_out"]) == set(kinds.KINDS)
    assert f"{chosen[0][0]:5d} {chosen[0][1]:5d}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('{"prompt": "a b c", "evidence": ["z"]}', "0 times"),
        ('{"prompt": "a b c"}', "cannot be read"),
        ('{"prompt": "a b c", "evidence": []}', "cannot be read"),
        ('{"prompt": "a b c", "evidence": "a"}', "cannot be read"),
        ("[1]", "cannot be read"),
        ("{", "cannot be read"),
        ("", "is empty"),
    ],
)
def test_prompts_that_cannot_be_used(rows, said, pair_of, tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(rows)
    with pytest.raises(SystemExit, match=said):
        calibrate.main([str(pair_of("llama")[1]), "--out", str(tmp_path / "h"), "--prompts", str(file), "--dtype", "float32"])


def test_a_folder_that_is_not_there_is_noticed_first(pair_of, tmp_path):
    with pytest.raises(SystemExit, match="does not exist"):
        calibrate.main([str(pair_of("llama")[1]), "--out", str(tmp_path / "nowhere" / "h")])


@pytest.mark.parametrize("option", ["--heads", "--layers", "--prompts-per-kind", "--tokens"])
def test_counts_are_positive(option, pair_of, tmp_path, capsys):
    with pytest.raises(SystemExit):
        calibrate.main([str(pair_of("llama")[1]), "--out", str(tmp_path / "h"), option, "0"])
    assert option in capsys.readouterr().err


def test_a_draft_that_is_no_folder(tmp_path):
    with pytest.raises(SystemExit, match="no Hugging Face folder"):
        calibrate.main([str(tmp_path / "model.gguf"), "--out", str(tmp_path / "h")])
