"""The selection bench measures what it says: the product's own selection, the true answer after it, paired intervals."""

import msgspec
import numpy as np
import pytest
import torch

from benchmarks.selection import measure, report, sparse
from benchmarks.selection.examples import Example
from benchmarks.selection.reading import as_ids, read_example, read_own
from benchmarks.selection.rules import READERS, rules
from specprefill_sgl.calibration.casting import cast
from specprefill_sgl.methods.own_tokens import OwnTokens
from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.selection.first_layers import last_part
from specprefill_sgl.selection.rule import PAPER, preset
from tests.support import other_tokenizer, reference, tiny_models
from tests.support.tiny_models import prompt_ids

HEADS = ((0, 1), (1, 3))


@pytest.fixture(scope="module")
def model(pair_of, hugging_face):
    return hugging_face(pair_of("llama")[1])


@pytest.fixture(scope="module")
def example():
    ids = prompt_ids(150, seed=3)
    return Example(
        "task", 0, 150, "held_out", ids, prompt_ids(5, seed=4), [False, True, True, False, True], [(20, 26)], (130, 150)
    )


@pytest.fixture(scope="module")
def reading(model, example):
    return read_example(model, example)


@pytest.fixture(scope="module")
def reader(hugging_face, tmp_path_factory):
    """A model of another vocabulary."""
    folder = other_tokenizer.save_draft(tmp_path_factory.mktemp("reader"))
    return hugging_face(folder), OwnTokens(tiny_models.tokenizer(), other_tokenizer.tokenizer())


def _nll(model, ids, positions, answer):
    """One token at a time, each from its own forward."""
    found = []
    for at, token in enumerate(answer):
        n = 150
        logits, _ = reference._forward(model, [*ids, *answer[:at]], [*positions, *range(n, n + at)], None)
        found.append(-float(logits.log_softmax(dim=-1)[token]))
    return found


def test_selections_of_any_length_in_one_forward_are_each_one_alone(model, example):
    selections = [np.array([*range(0, 150, step), 149]) for step in (2, 7, 40)] + [np.arange(150)]
    found = list(sparse.answers(model, example, selections))
    for kept, (nll, _) in zip(selections, found, strict=True):
        want = _nll(model, [example.ids[at] for at in kept], kept.tolist(), example.answer)
        assert nll.tolist() == pytest.approx(want, abs=1e-3)


def test_dense_is_the_whole_prompt(model, example, reading):
    assert reading.nll.tolist() == pytest.approx(_nll(model, example.ids, list(range(150)), example.answer), abs=1e-3)


@pytest.mark.parametrize("heads", [None, HEADS])
def test_votes_are_the_references(model, example, reading, heads):
    rule = preset("best", heads)
    prompt = Prompt(ids=measure.as_ids(example.ids), keep_ratio=0.2, rule=rule, keep_last=20)
    counted = prompt.counted
    wanted = reference.draft_votes(
        *(model, example.ids), lookahead=8, window=rule.window, pool_kernel=31, ignore_first=4, ignore_last=150 - counted[1],
        heads=heads,
    )  # fmt: skip
    votes = torch.cat([one for one in wanted.values() if len(one)])
    torch.testing.assert_close(cast(reading.seen, prompt).votes, votes, rtol=1e-3, atol=1e-6)


def test_early_layers_vote_in_the_last_part_of_them(model, reading, example):
    """Of two layers, one in two: the second."""
    rule = rules({None: HEADS, 8: HEADS, 15: HEADS})["early-layers 20, no heads"].rule
    prompt = Prompt(ids=as_ids(example.ids), keep_ratio=0.2, rule=rule)
    begin, end = prompt.counted
    votes = reference.draft_votes(
        *(model, example.ids), lookahead=1, window=48, pool_kernel=31, ignore_first=begin, ignore_last=150 - end, first=2
    )
    torch.testing.assert_close(cast(reading.seen, prompt, last_part(range(2), 2)).votes, votes["window"], rtol=1e-3, atol=1e-6)


def test_another_models_votes_are_over_the_targets_tokens(reader, example):
    """As `tests/e2e/test_draft_tokenizer.py` has it on a server."""
    ids, read, found = other_tokenizer.overlaps(tiny_models.tokenizer(), other_tokenizer.text(90, 3))
    other = read_own(*reader, msgspec.structs.replace(example, ids=ids))
    prompt = Prompt(ids=as_ids(ids), keep_ratio=0.2, rule=PAPER, reading=other.own)
    votes = reference.draft_votes(reader[0], read, lookahead=8, pool_kernel=13)["lookahead"]
    wanted = other_tokenizer.over_target(votes, found)
    torch.testing.assert_close(cast(other, prompt).votes, wanted, rtol=1e-3, atol=1e-6)


def test_rows_of_one_example(model, example, reader):
    measured = rules({None: HEADS, 8: HEADS, 15: HEADS})
    rows = list(measure.rows_of(model, example, measured, (0.2,), dict.fromkeys(READERS, reader)))
    by_name = {row["method"]: row for row in rows}
    assert set(by_name) == {"dense", measure.SAME, *measured}
    assert by_name[measure.SAME]["kept"] == by_name["best"]["kept"]
    assert all(row["evidence"] in (0.0, 1.0) and 0 <= row["oracle"] <= 1 for row in rows if row["method"] != "dense")


def test_the_papers_ranking_at_any_number_of_tokens(reading, example):
    prompt = Prompt(ids=measure.as_ids(example.ids), keep_ratio=0.2, rule=PAPER)
    votes = cast(reading.seen, prompt)
    for tokens in (1, 21, 22, 23, 60, 150):
        kept = measure.exactly(prompt, votes, tokens)
        assert len(np.unique(kept)) == tokens
        assert kept[-1] == 149 or tokens < 22
    whole = measure.exactly(prompt, votes, 22 + 64)  # the last chunk has 22 tokens
    best = np.argsort(-votes.votes.mean(0)[:128].view(4, 32).mean(1).numpy(), kind="stable")[:2]
    assert sorted({at // 32 for at in whole.tolist()}) == sorted([*best.tolist(), 4])


def test_intervals_pair_prompts_and_weigh_tasks_alike():
    rows = [
        {"task": task, "length": 9, "number": number, "keep_ratio": 0.1, "method": method, "loss": loss}
        for method, shift in (("a", 1.0), ("b", 0.0))
        for task, losses in (("x", [0.0, 2.0]), ("y", [5.0]))
        for number, loss in enumerate(value + shift for value in losses)
    ]
    assert report.cell(rows, "a", "b") == "+1.00 [+1.00, +1.00]"
    assert report.cell(rows, "b").startswith("3.00 [")
    mean, low, high = report.interval([np.array([0.0, 2.0]), np.array([5.0])])
    assert (mean, low, high) == (3.0, 2.5, 3.5)


def test_presets_are_the_products():
    measured = rules({None: HEADS, 8: HEADS, 15: HEADS})
    assert measured["paper"].rule == PAPER
    assert measured["best"].rule == preset("best", HEADS)
    assert msgspec.structs.replace(measured["best, no lookahead"].rule, lookahead=8) == measured["best"].rule
