"""How many first layers suffice: what k layers keep is an independent reference's, heads are others', a plateau is no peak."""

import functools
import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from specprefill_sgl.calibration import first_layers, kinds
from specprefill_sgl.calibration.casting import Seen
from specprefill_sgl.calibration.ranking import Found
from specprefill_sgl.calibration.reader import read
from specprefill_sgl.cli import calibrate, layers_table
from tests.support import best_reference, reference
from tests.support.tiny_models import prompt_ids

HEADS = {2: ((0, 1), (1, 3)), 3: ((2, 0), (1, 3))}  # of the first two layers, of all three
EARLY = {**best_reference.RULE, "lookahead": 1, "window": 48}
WHOLE = {**best_reference.RULE, "window": 48}


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_what_is_kept_is_what_an_independent_reference_keeps(ratio, pair_of, hugging_face):
    folder = pair_of("llama")[0]
    model, (known,) = hugging_face(folder), kinds.prompts("one key", 1, 150, kinds.plain)
    reading = first_layers.take(model, AutoTokenizer.from_pretrained(folder), known)
    below = first_layers.depths(reading, 3)
    assert below == {2: [0, 1], 3: [0, 1, 2]}
    n, evidence = len(reading.ids), set(np.flatnonzero(reading.evidence).tolist())

    def keeps(rule, heads=None, first=None):
        votes = functools.partial(reference.draft_votes, model, reading.ids, heads=heads, first=first)
        return set(best_reference.kept(lambda _n, **how: votes(**how), rule, {}, n, ratio))

    whole = keeps(WHOLE, HEADS[3])
    tail = reference.tail_chunks(n, keep_ratio=ratio, chunk_size=8, keep_last=48)[0] * 8
    chosen = {position for position in whole if position < tail}
    first = [
        [keeps(EARLY, HEADS[2]), keeps(EARLY, first=2)],
        [keeps(EARLY, HEADS[3]), keeps(EARLY, first=3)],
    ]
    wanted = [[[len(own & part) / len(part) for part in (chosen, evidence)] for own in line] for line in first]
    got = first_layers.kept(reading, below, HEADS, ratio)
    assert got.first == pytest.approx(np.array(wanted))
    assert got.whole == pytest.approx(len(whole & evidence) / len(evidence))
    assert len({str(shares) for line in wanted for shares in line}) > 2  # or any selection would do


@pytest.mark.parametrize(
    ("name", "layers", "wanted"),
    [
        ("mellum", 4, {3: [2], 4: [2, 3]}),  # two windowed layers first
        ("nemotron_h", 6, {3: [0], 6: [0, 1]}),  # M-*M-*
    ],
)
def test_only_layers_that_see_everything_count(name, layers, wanted, model_of, hugging_face):
    assert first_layers.depths(_read(hugging_face(model_of(name))), layers) == wanted


def test_a_model_whose_layers_are_all_windowed_is_refused(pair_of, hugging_face):
    reading = _read(hugging_face(pair_of("llama")[0]))
    windowed = [layer._replace(window=10) for layer in reading.seen.window]
    with pytest.raises(ValueError, match="none of the first layers"):
        first_layers.depths(reading._replace(seen=reading.seen._replace(window=windowed)), 3)


def _read(model):
    layers = read(model, prompt_ids(60, seed=5), 10).layers
    found = Found("", 60, np.zeros((len(layers), 1)), tuple(layer.hidden for layer in layers))
    return first_layers.Reading(found, [], np.zeros(60, dtype=bool), Seen(layers, [], []))


def _found(kind, *votes):
    return first_layers.Reading(Found(kind, 9, np.array(votes), (0, 1)), [], np.zeros(9, dtype=bool), Seen([], [], []))


def test_heads_are_those_that_other_kinds_choose():
    readings = [_found("a", [9.0, 0], [0, 1]), _found("b", [0, 8.0], [1, 0]), _found("a", [7.0, 0], [0, 1])]
    heads = first_layers.chosen_heads(readings, {2: [0], 4: [0, 1]}, 1)
    assert heads == [{2: ((0, 1),), 4: ((0, 1),)}, {2: ((0, 0),), 4: ((0, 0),)}, {2: ((0, 1),), 4: ((0, 1),)}]


def test_of_one_kind_the_other_prompts_choose():
    readings = [_found("own", [9.0, 0]), _found("own", [0, 8.0])]
    assert first_layers.chosen_heads(readings, {2: [0]}, 1) == [{2: ((0, 1),)}, {2: ((0, 0),)}]
    with pytest.raises(ValueError, match="one prompt"):
        first_layers.chosen_heads(readings[:1], {2: [0]}, 1)


@pytest.mark.parametrize(
    ("good", "wanted"),
    [
        ((0.1, 0.1, 0.5, 0.97, 0.96, 0.98, 1.0, 1.0, 1.0), 5),
        ((0.1, 0.9, 0.1, 0.1, 0.6, 0.6, 0.6, 0.1, 0.1), 6),  # a peak at 3, a plateau from 6
        ((0.1, 0.6, 0.6, 0.6, 0.7, 0.5, 0.1, 0.9, 0.9), 3),  # what is beyond 3/4 does not count
        ((0.4, 0.5, 0.5, 0.9, 0.8, 0.9, 0.1, 0.1, 0.1), 5),
        ((0.0,) * 9, 2),
    ],
)
def test_a_plateau_is_no_peak(good, wanted):
    assert first_layers.plateau(dict(enumerate(good, start=2)), 11) == wanted


def test_few_layers_that_see_everything_are_taken_as_they_are():
    assert first_layers.plateau({4: 0.2, 8: 0.9}, 12) == 8
    assert first_layers.plateau({4: 0.2}, 5) == 4


def test_the_command_says_what_every_number_of_layers_keeps(pair_of, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["--prompts-per-kind", "1", "--tokens", "150", "--dtype", "float32", "--keep-ratio", "0.25"]
    calibrate.main([str(pair_of("llama")[0]), "--layers", *few])
    said = capsys.readouterr().out
    assert "  2  0.67   1.09 | " in said  # 1 / (2/3 + 1/4)
    assert "  3  1.00   0.80 | " in said
    assert "--spec-prefill-layers 2 --spec-prefill-heads" in said
    assert not list(tmp_path.iterdir())


def test_the_proposal_is_of_the_evidence_over_all_keep_ratios():
    """Per k and keep ratio: overlap and evidence with heads, the same without."""
    one = {2: (0.1, 0.2, 0, 0.1), 3: (0.2, 0.9, 0, 0.1), 4: (0.2, 0.9, 0, 0.3), 5: (0.8, 0.9, 0, 0.3), 6: (0.8, 0.9, 0, 0.3)}
    other = {**one, 3: (0.2, 0.5, 0, 0.3)}  # 3 is on the plateau at one keep ratio only
    ks = [*one, 7, 8]
    tables = [
        first_layers.Kept(np.array([[*values.values(), values[6], values[6]]]).reshape(7, 2, 2), whole)
        for values, whole in ((one, 0.9), (other, 0.7))
    ]
    said = layers_table._proposal(ks, tables, "M")
    assert "--spec-prefill-layers 4 --spec-prefill-heads heads.json\n" in said
    assert "calibrate M --layers 4 --out heads.json\n" in said
    assert "That finds 0.90, the whole model 0.80. By overlap: 5 layers, 0.80. Without heads: 4 layers find 0.30." in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "--out", "h"], "writes nothing"),
        (["--layers", "2"], "--out is required"),
        ([], "--out is required"),
        (["--out", "h", "--keep-ratio", "0.1"], "--keep-ratio is read with --layers"),
        (["--layers", "--keep-ratio", "0.1,1"], "between 0 and 1"),
    ],
)
def test_options_that_contradict(options, said, pair_of, capsys):
    with pytest.raises(SystemExit):
        calibrate.main([str(pair_of("llama")[0]), *options])
    assert said in capsys.readouterr().err


def test_heads_of_a_hybrids_first_layers(model_of, tmp_path):
    """Its layers are counted with the linear ones, as `--spec-prefill-layers` counts them; its heads without."""
    few = ["--out", str(tmp_path / "h"), "--prompts-per-kind", "1", "--tokens", "100", "--dtype", "float32"]
    calibrate.main([str(model_of("nemotron_h")), "--layers", "5", *few])
    assert {layer for layer, _ in json.loads((tmp_path / "h").read_text())["heads"]} == {0}
    with pytest.raises(SystemExit, match="no head votes"):
        calibrate.main([str(model_of("nemotron_h")), "--layers", "2", *few])
