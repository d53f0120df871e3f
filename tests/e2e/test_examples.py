"""Every script of `examples/` runs, and the dashboard asks for metrics that a server exports."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import requests

from benchmarks import launch
from benchmarks.quality import forms
from tests.support.server import serve, sparse_options
from tests.support.streams import until

EXAMPLES = Path(__file__).parents[2] / "examples"
DASHBOARD = EXAMPLES / "monitoring" / "grafana" / "dashboards" / "spec-prefill.json"
WORDS = ("amber", "cedar", "harbor", "lantern", "winter")
RETURNING = {"revive_every": 1, "backfill": "turn"}  # what has metrics of its own


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    options = sparse_options(launch.DRAFT, selection="best", heads=launch.HEADS, **RETURNING)
    with serve(tmp_path_factory.mktemp("examples"), launch.TARGET, *options, "--enable-metrics") as running:
        yield running


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A document's file, a question, its answer."""
    facts = forms.pass_keys(Random("examples"), list(WORDS), len(WORDS))
    filler = "The boats came home late and the men sat by the fire . " * 20
    file = tmp_path_factory.mktemp("document") / "document.txt"
    file.write_text(filler.join(statement + " " for statement in ("", *facts.statements, "")))
    question, answer = facts.questions[1]
    return file, question, answer


def _run(*words, **env):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", ["generate.py", "openai_client.py", "anthropic_client.py", "frontend.py"])
def test_each_client(server, asked, script):
    file, question, answer = asked
    server.flush()  # what an earlier one backfilled is free, and then nothing is dropped
    words = ["--url", server.url, "--document", file, "--question", question, "--max-tokens", 4]
    said = _run(sys.executable, EXAMPLES / script, *words)
    assert answer in said
    kept, prompt = map(int, re.search(r"^kept (\d+) of (\d+) prompt tokens$", said, re.MULTILINE).groups())
    assert 0 < kept < prompt / 4


def test_load_with_sglangs_client(server):
    """Dense and sparse by turns: the second half is what the server counted as sparse."""
    before = server.state()["spec_prefill"]["counters"]["requests"]
    said = _run(EXAMPLES / "bench_serving.sh", launch.TARGET, server.url, 600, 4, 50, PATH=_path())
    assert len(re.findall(r"Successful requests: +4 *$", said, re.MULTILINE)) == 2
    after = server.state()["spec_prefill"]["counters"]["requests"]
    grown = {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
    # each run begins with its first prompt alone, which may be backfilled before it is asked again
    assert grown.pop("dense:disabled_by_request") == 5
    assert sum(grown.values()) == 5
    assert grown["sparse"] >= 4


def _path():
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))


def test_the_dashboard_asks_for_metrics_that_there_are(server, asked):
    """Of those with labels only what happened is exported: an answer is asked what it lacks, its prompt is backfilled."""
    file, question, _ = asked
    custom = {"spec_prefill_keep_ratio": 0.1}
    body = {"text": file.read_text() + question, "sampling_params": {"max_new_tokens": 8, "custom_params": custom}}
    assert server.post("/generate", body).status_code == 200
    until(lambda: server.state()["spec_prefill"]["counters"]["backfills"], 60)
    exported = set(re.findall(r"^(sglang:\w+)", requests.get(server.url + "/metrics", timeout=60).text, re.MULTILINE))
    panels = json.loads(DASHBOARD.read_text())["panels"]
    wanted = {name for panel in panels for one in panel["targets"] for name in re.findall(r"sglang:\w+", one["expr"])}
    assert {name for name in exported if "spec_prefill" in name and not name.endswith(("_bucket", "_count", "_sum"))} <= wanted
    assert wanted <= exported


@pytest.mark.slow
def test_the_engine(asked):
    options = {"device": "cpu", "attention_backend": "torch_native", "dtype": "float32", "max_total_tokens": 20000}
    options |= {"mem_fraction_static": 0.2, "chunked_prefill_size": 512}
    words = ["--target", launch.TARGET, "--draft", launch.DRAFT, "--document", asked[0], "--options", json.dumps(options)]
    said = _run(sys.executable, EXAMPLES / "engine.py", *words, PYTHONPATH=str(EXAMPLES.parent))
    assert "'applied': True" in said
