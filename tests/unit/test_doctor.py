"""`doctor` without servers: its float64 votes, what it says of steps that fail or cannot be run, its verdict."""

import json
import time

import pytest
import torch

from specprefill_sgl.cli.doctor import answers, checks, kernels, machine, report, steps
from specprefill_sgl.scoring import triton_scoring
from specprefill_sgl.scoring.torch_scoring import layer_votes


@pytest.fixture
def folder(tmp_path):
    (tmp_path / checks.FILE).write_text(report.provenance(["--only", "kernels"]) + "\n")
    return tmp_path


@pytest.mark.parametrize("chosen", [None, [1, 4]])
def test_exact_votes_are_those_of_plain_torch(chosen):
    torch.manual_seed(0)
    queries, keys = torch.randn(6, 8, 32), torch.randn(300, 2, 32)
    visible, counted = list(range(295, 301)), (4, 294)
    want = layer_votes(
        queries,
        keys,
        scaling=32**-0.5,
        logit_cap=0.0,
        pool_kernel=13,
        visible=torch.tensor(visible),
        counted=counted,
        heads=chosen,
    )
    got = kernels.exact_votes(queries, keys, visible, counted, chosen, 13)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.float(), want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rule", ["paper", "best"])
def test_kernels_are_compared_as_on_a_gpu(rule):
    """In the interpreter: the votes are right, and wrong ones are seen."""
    error, _, n_bytes = kernels.compared("1B", rule, 100, "cpu")
    assert error < kernels._MOST
    assert n_bytes == 100 * 8 * 64 * 2


def test_wrong_votes_are_seen(monkeypatch):
    monkeypatch.setattr(triton_scoring, "accumulate_votes", lambda out, *_, **__: out.fill_(0.01))
    assert kernels.compared("1B", "best", 300, "cpu")[0] > 10 * kernels._MOST


def test_graphs_are_found_in_a_log():
    line = (
        "[2026-11-28 17:59:09] Decode batch, #running-req: 1, #token: 313, token usage: 0.01, {} graph: {}, gen throughput: 1"
    )
    log = "\n".join(line.format("cuda", used) for used in (True, False)) + "\n" + line.format("cpu", True)
    assert answers.graphs_used(log) == ["True", "False"]


def test_provenance_says_what_ran(folder):
    line = json.loads((folder / checks.FILE).read_text())
    assert line["command"][-2:] == ["--only", "kernels"]
    assert line["versions"]["sglang"]
    assert line["device"]


def test_a_step_that_crashes_fails_alone_and_says_why(folder):
    steps.run("no_such_step", folder, time.monotonic() + 60)
    (check,) = checks.read(folder)
    assert check.status is checks.Status.FAILED
    assert "No module named 'specprefill_sgl.cli.doctor.no_such_step'" in check.found
    assert (folder / check.log).is_file()


def test_what_a_step_found_before_it_was_killed_is_there(folder, monkeypatch):
    recorder = checks.Recorder("answers triton", folder)
    recorder.holds("one", True, "found")
    monkeypatch.setattr(steps, "_LIMIT_S", 0.01)
    steps.run("answers triton", folder, time.monotonic() + 60)
    one, killed = checks.read(folder)
    assert (one.status, killed.status) == (checks.Status.PASSED, checks.Status.FAILED)
    assert "did not end within" in killed.found


def test_a_step_that_the_budget_ends_did_not_fail(folder):
    steps.run("answers triton", folder, time.monotonic() + 0.01)
    (check,) = checks.read(folder)
    assert (check.status, check.found) == (checks.Status.NOT_RUN, "it was ended with the time that was left: --budget")


def test_no_step_begins_after_the_budget(folder):
    steps.run("answers triton", folder, time.monotonic())
    (check,) = checks.read(folder)
    assert (check.status, check.found) == (checks.Status.NOT_RUN, "no time was left: --budget")


@pytest.mark.parametrize(
    ("capability", "backend", "why"),
    [
        (None, "torch_native", None),
        (None, "triton", "needs a GPU"),
        (9, "torch_native", "is for machines without a GPU"),
        (9, "fa3", None),
        (8, "fa3", "needs a Hopper GPU, this one has compute capability 8"),
        (8, "triton", None),
    ],
)
def test_backends_that_a_machine_has(monkeypatch, capability, backend, why):
    monkeypatch.setattr(machine, "capability", lambda: capability)
    assert machine.missing(backend) == why


def test_what_needs_a_gpu_is_listed(folder, monkeypatch):
    monkeypatch.setattr(machine, "capability", lambda: None)
    for name in steps.names(None):
        if name not in ("environment", "answers torch_native", "speed torch_native"):
            steps.run_here(name, folder)
    found = checks.read(folder)
    assert {check.step for check in found} == {
        "kernels",
        *(f"{s} {b}" for s in ("answers", "speed") for b in machine.BACKENDS[1:]),
    }
    assert {(check.status, check.found) for check in found} == {(checks.Status.NOT_RUN, "needs a GPU")}


def test_a_failure_names_what_to_report(folder, capsys):
    recorder = checks.Recorder("answers triton", folder)
    recorder.holds("one", True, "fine")
    assert report.verdict(checks.read(folder), folder) == 0
    recorder.holds("sparse equals an eager reference", False, "logprobs within 3.0e+00", "within 1e-03", folder / "server.log")
    assert report.verdict(checks.read(folder), folder) == 1
    said = capsys.readouterr().out
    assert "report: answers triton, sparse equals an eager reference: logprobs within 3.0e+00 (wanted: within 1e-03)" in said
    assert f"with {folder / checks.FILE} and {folder / 'server.log'}" in said
    assert "FAILED" in report.table(checks.read(folder))


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("INFO fine\nspecprefill-sgl: --spec-prefill needs x\nlast\n", "specprefill-sgl: --spec-prefill needs x"),
        ("Traceback\ntorch.OutOfMemoryError: CUDA out of memory\n  at\n", "torch.OutOfMemoryError: CUDA out of memory"),
        ("ValueError: no such backend\nEOFError\nRuntimeError: Rank 0 scheduler died\n", "ValueError: no such backend"),
        ("only this\n\n", "only this"),
        ("", "its log is empty"),
    ],
)
def test_the_telling_line_of_a_log(tmp_path, log, line):
    (tmp_path / "log").write_text(log)
    assert steps.telling(tmp_path / "log") == line
