"""`doctor` on a machine without a GPU: real servers of its CPU pairs, and that it sees what is wrong."""

import os
import subprocess
import sys

import pytest

from benchmarks import launch
from specprefill_sgl.cli.doctor import checks
from tests.support.faults import plugin_on_path

pytestmark = pytest.mark.slow  # each starts servers of its own

_SHIFTED = """
def register():
    import numpy as np
    from specprefill_sgl.request.state import PromptState
    PromptState.span_offsets = lambda self, start, length: np.zeros(length, dtype=np.int64)
"""


def _doctor(folder, *words, env=None):
    run = subprocess.run(
        [sys.executable, "-m", "specprefill_sgl", "doctor", "--out", str(folder), *words],
        **{"cwd": launch.ROOT, "env": {**os.environ, **(env or {})}, "capture_output": True, "text": True, "timeout": 600},
    )
    found = {f"{check.step}: {check.name}": check for check in checks.read(folder)}
    return run, found


def test_answers_of_real_servers(tmp_path):
    run, found = _doctor(tmp_path / "doctor", "--only", "answers", "--backends", "torch_native", "fa3")
    assert run.returncode == 0, run.stdout
    passed = {name for name, check in found.items() if check.status is checks.Status.PASSED}
    assert passed == {
        f"answers torch_native: {name}"
        for name in (
            "keep ratio 1 equals dense",
            "the request is sparse",
            "sparse equals an eager reference",
            "and none with other positions",
            "the radix cache is used again",
            "overlap schedule",
        )
    }
    rest = {name: check.found for name, check in found.items() if name not in passed}
    assert rest == {"answers torch_native: decode under CUDA graphs": "needs a GPU", "answers fa3: step": "needs a GPU"}


def test_wrong_positions_are_found(tmp_path):
    env = plugin_on_path(tmp_path / "plugin", "shifted_positions", _SHIFTED)
    run, found = _doctor(tmp_path / "doctor", "--only", "answers", "--backends", "torch_native", env=env)
    assert run.returncode == 1
    assert found["answers torch_native: sparse equals an eager reference"].status is checks.Status.FAILED
    assert found["answers torch_native: keep ratio 1 equals dense"].status is checks.Status.PASSED
    assert "report: answers torch_native, sparse equals an eager reference" in run.stdout


def test_a_server_that_does_not_start_is_one_failure(tmp_path):
    env = {"SGLANG_PLUGINS": "specprefill_cpu"}  # so that nobody knows --spec-prefill
    run, found = _doctor(tmp_path / "doctor", "--only", "environment", "answers", "--backends", "torch_native", env=env)
    assert run.returncode == 1
    assert "unrecognized arguments" in found["answers torch_native: server"].found
    assert found["environment: hooks"].status is checks.Status.FAILED
    assert found["environment: version of sglang"].status is checks.Status.PASSED


def test_speed(tmp_path):
    run, found = _doctor(tmp_path / "doctor", "--only", "speed", "--backends", "torch_native")
    assert run.returncode == 0, run.stdout
    assert found["speed torch_native: sparse is faster"].status is checks.Status.PASSED
    assert " of " in found["speed torch_native: of the bound"].found
