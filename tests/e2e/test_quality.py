"""The shipped pair on a real server: the gate for scoring and selection, and the harness for real models."""

import json
import subprocess
import sys

import pytest
import requests
from transformers import AutoTokenizer

from benchmarks import launch
from benchmarks.quality import ask, matrix, tasks
from benchmarks.quality.results import Results
from benchmarks.quality.server import serve

PROMPTS, LENGTH, KEEP_RATIO = 40, 1024, 0.2


@pytest.fixture(scope="module")
def count():
    tokenizer = AutoTokenizer.from_pretrained(launch.TARGET)
    return lambda piece: len(tokenizer.encode(piece, add_special_tokens=False))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(launch.TARGET, launch.DRAFT, tmp_path_factory.mktemp("quality")) as running:
        yield running


@pytest.fixture(scope="module")
def right(server, count, tmp_path_factory):
    """Right answers of 40 needle prompts per method; the bench's own rows and requests."""
    methods = (ask.DENSE, matrix.SPECPREFILL, "random")
    blocks = matrix.main_blocks(methods, ["single_needle"], [LENGTH], [KEEP_RATIO], lambda _: PROMPTS)
    results = Results(tmp_path_factory.mktemp("results") / "gate.jsonl")
    matrix.send(blocks, server, results, count)
    assert len(results.rows) == 3 * PROMPTS
    return {method: sum(row["right"] for row in results.rows if row["method"] == method) for method in methods}


def test_the_dense_target_answers(right):
    assert right[ask.DENSE] >= 0.95 * PROMPTS


def test_sparse_keeps_90_percent_of_dense(right):
    assert right[matrix.SPECPREFILL] >= 0.9 * right[ask.DENSE]


def test_random_selection_is_clearly_below(right):
    assert right["random"] <= 0.5 * right[matrix.SPECPREFILL]


def test_a_request_chooses_its_method(server, count):
    """What one method kept is not another's answer to the same prompt; a method that is not loaded is a bad field."""
    server.choose()
    prompt = tasks.example("single_needle", LENGTH, 1, count).prompt

    def post(**custom):
        params = {"max_new_tokens": 1, "custom_params": {"spec_prefill_return_positions": True, **custom}}
        return requests.post(server.url + "/generate", json={"text": prompt, "sampling_params": params}, timeout=600)

    infos = [post(**custom).json()["meta_info"]["spec_prefill"] for custom in ({}, {"spec_prefill_method": "random"}, {})]
    assert [info["method"] for info in infos] == ["draft", "random", "draft"]
    assert infos[0]["positions"] == infos[2]["positions"] != infos[1]["positions"]
    assert infos[2]["draft_cached_tokens"] == infos[2]["prompt_tokens"]  # remembered beside the other's
    refused = post(spec_prefill_method="lazy")
    assert (refused.status_code, "draft or random" in refused.text) == (400, True)


@pytest.mark.parametrize("keep_ratio", [0.1, 0.3])
def test_rows_say_what_was_kept(server, count, keep_ratio):
    server.choose()
    example = tasks.example("single_needle", LENGTH, 0, count)
    row = ask.ask(server.url, example, matrix.SPECPREFILL, keep_ratio, count)
    assert row["kept_tokens"] <= (keep_ratio + 2 * 32 / LENGTH) * row["prompt_tokens"]


@pytest.fixture
def data(tmp_path, count):
    """LongBench's and RULER's files in their authors' formats, with facts the pair can find."""
    examples = [tasks.example("single_needle", 700, number, count) for number in range(4)]
    longbench = [
        {
            "input": one.question,
            "context": one.prompt.removesuffix(one.question).rstrip(),
            "answers": [one.answer.strip()],
            "length": 500,
            "dataset": "trec",
            "language": "en",
            "all_classes": [other.answer.strip() for other in examples],
            "_id": str(one.number),
        }
        for one in examples
    ]
    ruler = [{"index": one.number, "input": one.prompt, "outputs": [one.answer.strip()], "length": 700} for one in examples]
    for path, rows in (("longbench/trec.jsonl", longbench), ("ruler/niah_single_1/validation.jsonl", ruler)):
        file = tmp_path / "data" / path
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def _harness(out, *options):
    words = [sys.executable, "-m", "benchmarks.quality", "--out", str(out), *options]
    return subprocess.run(words, cwd=launch.ROOT, capture_output=True, text=True, timeout=300)


def test_the_harness_scores_longbench_and_ruler_from_local_files(server, data, tmp_path):
    server.choose()
    out = tmp_path / "out"
    where = ["--base-url", server.url, "--tasks", "longbench,ruler", "--data-dir", str(data)]
    run = _harness(out, *where, "--keep-ratios", "0.2", "--limit", "3")
    assert run.returncode == 0, run.stderr[-3000:]
    first, *rows = [json.loads(line) for line in (out / "harness.jsonl").read_text().splitlines()]
    assert first["provenance"]["versions"]["sglang"]
    by_task = {(row["task"], row["method"]): row for row in rows}
    assert set(by_task) == {(t, m) for t in ("longbench_trec", "ruler_niah_single_1") for m in ("dense", "specprefill")}
    for (task, method), row in by_task.items():
        assert row["documents"] == 3
        assert row["server"]["spec_prefill"]["lookahead"] == 8  # what the bench chose, not the flag
        assert row["scores"]["score"] == 1.0, (task, method)
    assert "| ruler_niah_single_1 | 3 | 1.000 | 1.000 |" in (out / "harness.md").read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tasks", "longbench"], "--data-dir must be a folder"),
        (["--tasks", "mmlu", "--data-dir", "."], "--tasks: with --base-url only longbench, ruler are known, got 'mmlu'"),
        (["--tasks", "ruler", "--data-dir", "."], "--data-dir: ruler has no .jsonl files"),
    ],
)
def test_the_harness_refuses_what_it_cannot_run(tmp_path, options, sentence):
    run = _harness(tmp_path, "--base-url", "http://127.0.0.1:9", *options)
    assert run.returncode != 0
    assert sentence in run.stderr
