"""The quality bench's own parts: tasks, controls, statistics, results."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from benchmarks import launch, text
from benchmarks.quality import controls, matrix, plugin, report, tasks
from benchmarks.quality.results import Results, read
from specprefill_sgl.scoring.torch_scoring import layer_votes


@pytest.fixture(scope="module")
def count():
    tokenizer = AutoTokenizer.from_pretrained(launch.DRAFT)
    return lambda piece: len(tokenizer.encode(piece, add_special_tokens=False))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_examples_have_their_length_and_one_true_answer(task, count):
    for number in range(4):
        example = tasks.example(task, 600, number, count)
        assert example == tasks.example(task, 600, number, count)
        assert 540 <= count(example.prompt) <= 600
        assert example.prompt.endswith("\n\n" + example.question)
        assert tasks.is_right(example, example.answer)
        assert tasks.recall(example, example.answer) == 1
    assert tasks.example(task, 600, 0, count) != tasks.example(task, 600, 1, count)


def test_values_are_stated_and_nothing_gives_them_away(count):
    for number in range(10):
        example = tasks.example("multi_key", 800, number, count)
        statement = f"{example.question}{example.answer}."
        assert example.prompt.count(statement) == 1
        assert example.prompt.count(example.answer.strip()) == 1


def test_depth_places_the_needle(count):
    def place(depth):
        example = tasks.example("single_needle", 1000, 3, count, depth)
        return example.prompt.index(example.question) / len(example.prompt)

    assert place(0.0) == 0
    assert 0.35 < place(0.5) < 0.65
    assert place(1.0) > 0.9


def test_words_and_prose_of_the_bench_are_not_those_of_training():
    assert not set(text.lower_case_words(held_out=True)) & set(text.lower_case_words(held_out=False))
    for name in text.BOOKS:
        seen = set(text.sentences(name, held_out=False))
        fresh = [one for one in text.sentences(name, held_out=True) if len(one) > 60]
        assert sum(one in seen for one in fresh) <= 0.01 * len(fresh)


@pytest.mark.parametrize(
    ("output", "right"),
    [
        (" 48213.", True),
        ("48213", True),
        (" 48213\n", True),
        (" 482134", False),
        (" 48212.", False),
        (" is 48213", False),
        ("", False),
    ],
)
def test_exact_match(output, right):
    example = tasks.Example("single_needle", 0, 0, "", "", " 48213")
    assert tasks.is_right(example, output) is right


def test_random_chunks_are_an_order_of_chunks():
    ids = np.arange(100)
    values = controls.random_chunks(ids, 32)
    assert len(values) == 100
    assert [len(set(values[start : start + 32])) for start in range(0, 100, 32)] == [1, 1, 1, 1]
    assert len(set(values)) == 4
    assert np.array_equal(values, controls.random_chunks(ids, 32))
    assert not np.array_equal(values, controls.random_chunks(ids + 1, 32))


def test_first_and_last_take_the_ends_before_the_middle():
    values = controls.first_and_last(np.arange(7 * 4), 4)[::4]
    assert list(np.argsort(-values, kind="stable")) == [0, 6, 1, 5, 2, 4, 3]


def test_bm25_is_okapi_bm25():
    """Four chunks of four tokens; the last is the question. Term 7 is in chunks 0 and 3, term 8 in chunks 1, 2 and 3."""
    ids = np.array([7, 1, 1, 1, 8, 8, 2, 2, 8, 3, 3, 3, 7, 8, 9, 9])
    values = controls.bm25(ids, 4)[::4]

    def weight(holding):
        return np.log(1 + (4 - holding + 0.5) / (holding + 0.5))

    def frequency(times):
        return times * 2.5 / (times + 1.5)

    assert values[:3] == pytest.approx([weight(2) * frequency(1), weight(3) * frequency(2), weight(3) * frequency(1)])
    assert values[3] == pytest.approx((weight(2) + weight(3)) * frequency(1) + weight(1) * frequency(2))


def test_the_ablations_mean_over_heads_is_a_mean_of_what_the_product_takes_the_maximum_of():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(3, 2, 8, generator=generator), torch.randn(40, 2, 8, generator=generator)
    alone = [layer_votes(queries[:, [h]], keys[:, [h]], scaling=0.3, logit_cap=0.0, pool_kernel=5) for h in range(2)]
    got = plugin.mean_layer_votes(queries, keys, scaling=0.3, logit_cap=0.0, pool_kernel=5)
    torch.testing.assert_close(got, (alone[0] + alone[1]) / 2)


def _rows(method, ratio, rights):
    return [
        {"task": "single_needle", "length": 512, "number": i, "method": method, "keep_ratio": ratio, "right": bool(right)}
        for i, right in enumerate(rights)
    ]


def test_differences_are_paired_by_prompt():
    dense, sparse = _rows("dense", 1.0, [1, 1, 0, 1]), _rows("specprefill", 0.1, [1, 0, 1, 1])
    assert report.differences(sparse[::-1], dense) == [0, 1, -1, 0]


def test_intervals_hold_the_mean_and_shrink():
    few, many = report.interval([0, 1] * 10), report.interval([0, 1] * 200)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert report.interval([1.0] * 5) == (1.0, 1.0)


def test_a_task_holds_where_it_keeps_95_percent_of_dense():
    rows = (
        _rows("dense", 1.0, [1] * 20)
        + _rows("specprefill", 0.1, [1] * 18 + [0] * 2)
        + _rows("specprefill", 0.2, [1] * 19 + [0])
    )
    last = report.verdicts(rows, [0.1, 0.2], [512]).splitlines()[-1]
    assert last == "| single_needle | 100.0% | none / 512 | 512 / none |"
    assert report.summary(rows).splitlines()[-1].startswith("| single_needle | 100% | 90% | **95%** |")


def test_where_dense_gets_nothing_right_nothing_is_held():
    rows = _rows("dense", 1.0, [0] * 20) + _rows("specprefill", 0.1, [0] * 20)
    assert report.verdicts(rows, [0.1], [512]).splitlines()[-1] == "| single_needle | 0.0% | none / none |"
    assert "**" not in report.summary(rows)


def test_a_stopped_run_knows_what_it_has(tmp_path):
    row = {"method": "dense", "task": "votes", "length": 512, "number": 0, "keep_ratio": 1.0, "depth": None, "settings": {}}
    Results(tmp_path / "r.jsonl").add({**row, "right": True})
    again = Results(tmp_path / "r.jsonl")
    assert row in again
    assert {**row, "number": 1} not in again
    assert {**row, "settings": {"lookahead": 4}} not in again
    assert [one["right"] for one in read(tmp_path / "r.jsonl")] == [True]


def test_the_matrix_asks_dense_once_and_every_method_at_every_keep_ratio():
    blocks = matrix.main_blocks(matrix.METHODS, ["votes"], [512, 1024], matrix.KEEP_RATIOS, lambda length: 3)
    assert [block.method for block in blocks] == list(matrix.METHODS)
    assert {len(block.cells) for block in blocks[2:]} == {2 * 3 * 5}
    assert len(blocks[0].cells) == 2 * 3
    assert len(blocks[1].cells) == 2 * 3 * 6  # keep ratio 1 of the product too: it must equal dense
