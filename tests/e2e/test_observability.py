"""Metrics, `/server_info`, and the commands `check` and `explain`."""

import json
import re
import subprocess
import sys

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoTokenizer

from benchmarks import launch
from benchmarks.speed import profile
from tests.support.server import serve, sparse_options
from tests.support.tiny_models import prompt_ids

PREFIX = "sglang:spec_prefill_"


@pytest.fixture(scope="module")
def pair(pair_of):
    return pair_of("llama")


@pytest.fixture(scope="module")
def server(pair, tmp_path_factory):
    target, draft = pair
    with serve(tmp_path_factory.mktemp("server"), target, *sparse_options(draft), "--enable-metrics") as running:
        yield running


def _samples(server):
    """(name, own labels) -> value, of our metrics."""
    text = requests.get(server.url + "/metrics", timeout=60).text
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(PREFIX):
                own = {
                    key: sample.labels[key]
                    for key in ("outcome", "reason", "method", "disposition", "stage", "le")
                    if key in sample.labels
                }
                samples[sample.name.removeprefix(PREFIX), tuple(sorted(own.items()))] = sample.value
    return samples


def _value(samples, name, **labels):
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def test_metrics_count_what_happened(server):
    before = _samples(server)
    ids = prompt_ids(900, seed=1)
    infos = [server.generate(ids, custom={"spec_prefill_keep_ratio": 0.2})["meta_info"]["spec_prefill"] for _ in range(2)]
    server.generate(ids, custom={"spec_prefill": False})
    server.generate(prompt_ids(5, seed=2))
    after = _samples(server)

    def more(name, **labels):
        return _value(after, name, **labels) - _value(before, name, **labels)

    kept = infos[0]["kept_tokens"]
    assert more("requests_total", outcome="sparse", reason="", method="draft") == 2
    assert more("requests_total", outcome="dense", reason="disabled_by_request", method="") == 1
    assert more("requests_total", outcome="dense", reason="below_min_tokens", method="") == 1
    assert more("prompt_tokens_total", disposition="dropped") == 2 * (900 - kept)
    assert more("prompt_tokens_total", disposition="kept") == 2 * kept + 905
    assert more("keep_ratio_count") == 2
    assert more("keep_ratio_sum") == pytest.approx(2 * kept / 900)
    for stage in ("draft", "score", "select"):
        assert more("stage_seconds_count", stage=stage, method="draft") == 1  # the repeated prompt is not drafted
        assert more("stage_seconds_sum", stage=stage, method="draft") > 0
    assert _value(after, "draft_pool_used_tokens") >= 900


def test_cached_tokens_are_counted_apart(server):
    server.flush()
    system, before = prompt_ids(500, seed=3), _samples(server)
    server.generate(system, custom={"spec_prefill": False})
    server.generate(system + prompt_ids(700, seed=4), custom={"spec_prefill_keep_ratio": 0.2})
    server.generate(system + prompt_ids(700, seed=5), custom={"spec_prefill_keep_ratio": 0.2})
    after = _samples(server)

    def more(name, **labels):
        return _value(after, name, **labels) - _value(before, name, **labels)

    assert more("prompt_tokens_total", disposition="cached") >= 2 * 500
    assert more("draft_cached_tokens_total") == 500


def test_a_flush_empties_the_gauge(server):
    server.generate(prompt_ids(900, seed=8), custom={"spec_prefill_keep_ratio": 0.2})
    assert _value(_samples(server), "draft_pool_used_tokens") >= 900
    server.flush()
    assert _value(_samples(server), "draft_pool_used_tokens") == 0


@pytest.mark.slow
def test_tensor_parallel_ranks_count_a_request_once(pair, tmp_path):
    target, draft = pair
    with serve(tmp_path, target, *sparse_options(draft), "--enable-metrics", "--tp", "2") as running:
        running.generate(prompt_ids(900, seed=1), custom={"spec_prefill_keep_ratio": 0.2})
        samples = _samples(running)
    assert _value(samples, "requests_total", outcome="sparse", reason="", method="draft") == 1
    assert _value(samples, "stage_seconds_count", stage="draft", method="draft") == 1
    assert _value(samples, "keep_ratio_count") == 1


def test_server_info_has_the_counters(server):
    block = server.state()["spec_prefill"]
    assert block["keep_ratio"] == 0.2
    assert block["attached"] == "plugin"
    counters = block["counters"]
    assert counters["requests"]["sparse"] >= 1
    assert sum(counters["prompt_tokens"].values()) > 0
    assert counters["draft_tokens"]["read"] > 0


def test_a_profile_of_sglang_names_the_stages(server, tmp_path):
    events = profile.profiled(server.url, prompt_ids(900, seed=11), tmp_path)
    assert {stage for stage, _ in profile.own_ms(events)} >= {"draft", "lookahead", "score", "select", "target"}


def test_scores_explain_the_selection(server):
    server.flush()
    custom = {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_positions": True, "spec_prefill_return_scores": True}
    info = server.generate(prompt_ids(1000, seed=6), custom=custom)["meta_info"]["spec_prefill"]
    kept = sorted({position // 32 for position in info["positions"]})
    scores = info["scores"]
    assert len(scores) == 32
    chosen = [at for at in kept if at != 31]
    assert min(scores[at] for at in chosen) >= max(scores[at] for at in range(31) if at not in kept)


def test_votes_say_who_asked_for_what(server):
    """The reply's votes are what the scores are the mean of, under the paper's rule."""
    server.flush()
    ids = prompt_ids(1000, seed=6)
    custom = {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_scores": True, "spec_prefill_return_votes": True}
    info = server.generate(ids, custom=custom)["meta_info"]["spec_prefill"]
    votes = info["votes"]
    assert votes["positions"] == list(range(999, 999 + len(votes["positions"])))
    assert votes["tokens"][0] == ids[-1]
    means = [sum(column) / len(column) for column in zip(*votes["chunks"], strict=True)]
    assert means == pytest.approx(info["scores"], rel=1e-4)
    again = server.generate(ids, custom={**custom, "spec_prefill_window": 30})["meta_info"]["spec_prefill"]["votes"]
    assert again["positions"] == [*range(970, 1000), *votes["positions"]]
    assert again["tokens"] == [*ids[970:], *votes["tokens"]]


def _run(*words):
    return subprocess.run(
        [sys.executable, "-m", "specprefill_sgl", *words], cwd=launch.ROOT, capture_output=True, text=True, timeout=200
    )


def test_explain_shows_every_token_and_marks_what_was_kept(server, pair, tmp_path):
    server.flush()
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    text = tokenizer.decode(prompt_ids(600, seed=7))
    (tmp_path / "prompt.txt").write_text(text, encoding="utf-8")
    run = _run(
        "explain", str(tmp_path / "prompt.txt"), "--url", server.url, "--keep-ratio", "0.2", "--html", str(tmp_path / "p.html")
    )
    assert run.returncode == 0, run.stderr
    ids = tokenizer.encode((tmp_path / "prompt.txt").read_text(encoding="utf-8"))
    kept = int(re.search(rf"(\d+) of {len(ids)} tokens kept", run.stdout)[1])
    assert 0 < kept < 0.35 * len(ids)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    shown = json.loads(re.search(r'id="explained">(.*?)</script>', page, re.DOTALL)[1])
    assert "".join(shown["chunks"]) == (tmp_path / "prompt.txt").read_text(encoding="utf-8")
    assert len(shown["chunks"]) == -(-len(ids) // 32)
    assert 0 <= shown["fates"].count("kept") * 32 - kept < 32
    assert set(shown["fates"]) == {"kept", "dropped"}
    again = _run("explain", str(tmp_path / "prompt.txt"), "--url", server.url, "--keep-ratio", "0.2")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[:-1] == run.stdout.splitlines()[:-1]


def test_explain_of_a_short_prompt_says_why_not(server, tmp_path):
    (tmp_path / "short.txt").write_text("a b")
    run = _run("explain", str(tmp_path / "short.txt"), "--url", server.url)
    assert run.returncode == 1
    assert "below_min_tokens" in run.stderr


def test_tune_compares_and_proposes(server, pair, tmp_path):
    """The largest of these ratios keeps all of a prompt: there sparse answers are the dense ones, and it is proposed."""
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    texts = [tokenizer.decode(prompt_ids(300, seed=seed)) for seed in (11, 12, 13)]
    rows = [json.dumps({"prompt": text}) for text in [*texts, "a b"]]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    words = ("--prompts", str(tmp_path / "prompts.jsonl"), "--url", server.url, "--keep-ratio", "0.1,0.99")
    run = _run("tune", *words, "--answer-tokens", "8", "--tolerance", "0", "--out", str(tmp_path / "out.jsonl"))
    assert run.returncode == 0, run.stderr
    assert "not counted (below_min_tokens): prompts 3" in run.stdout
    lines = {line.split("  ")[0].strip() or line.strip().split("  ")[0]: line for line in run.stdout.splitlines()}
    assert "3 of 3" in lines["dense again"]
    assert "1.00 [1.00, 1.00]" in lines["0.99"]
    assert "0.00 [" in lines["0.99"]
    assert "Proposed: --spec-prefill-keep-ratio 0.99" in run.stdout
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["keep_ratio"]) for row in found] == [(n, r) for n in range(3) for r in (None, 0.1, 0.99)]
    assert all(row["same"] < 1 for row in found if row["keep_ratio"] == 0.1)
    assert all(0 < row["kept"] < 0.4 for row in found if row["keep_ratio"] == 0.1)


def test_check_accepts_what_can_be_served(pair):
    run = _run("check", "--model-path", str(pair[0]), "--spec-prefill-draft-model-path", str(pair[1]), "--device", "cpu")
    assert run.returncode == 0, run.stderr[-2000:]
    assert "compatible" in run.stdout
    assert "works with radix cache: run on CPU" in run.stdout
    assert re.search(r"draft KV pool: \d+ tokens, \d+ MiB", run.stdout)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "--spec-prefill-method draft needs --spec-prefill-draft-model-path"),
        (["--spec-prefill-draft-model-path", "/nowhere"], "--spec-prefill-draft-model-path"),
        (["--spec-prefill-draft-model-path", "DRAFT", "--spec-prefill-heads", "/nowhere"], "--spec-prefill-heads /nowhere"),
        (  # and not only the first
            ["--spec-prefill-draft-model-path", "DRAFT", "--enable-lmcache", "--enable-flexkv"],
            "cannot be combined with --enable-lmcache: it hashes token ids.\n"
            "specprefill-sgl: --spec-prefill cannot be combined with --enable-flexkv",
        ),
        (["--spec-prefill-draft-model-path", "DRAFT", "--tp-size", "4"], "6 attention heads (2 key heads) cannot be divided"),
    ],
)
def test_check_refuses_as_the_server_would(pair, options, sentence):
    run = _run("check", "--model-path", str(pair[0]), "--device", "cpu", *(o.replace("DRAFT", str(pair[1])) for o in options))
    assert run.returncode != 0
    assert sentence in run.stderr
