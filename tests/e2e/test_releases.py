"""Older tested releases of SGLang, unpacked beside the installed one's dependencies (`make release`), and patched copies."""

import os
import subprocess
import sys

import pytest

from benchmarks import launch
from patches import sources
from specprefill_sgl.compat import releases

pytestmark = pytest.mark.slow
ONE_FAMILY = "not (gemma2 or mistral or qwen2 or qwen3 or windowed)"


def _passes(words, env):
    run = subprocess.run(
        [sys.executable, "-m", *words], cwd=launch.ROOT, env={**os.environ, **env}, capture_output=True, text=True
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-5000:]


@pytest.mark.parametrize("release", releases.TESTED[1:])
def test_an_older_release(release):
    tests = ("tests/contract", "tests/e2e/test_reference.py", "tests/e2e/test_radix_cache.py")
    env = {"PYTHONPATH": str(sources.package_folder(release))}
    _passes(["pytest", *tests, "-k", ONE_FAMILY], env)


@pytest.mark.parametrize("release", releases.TESTED)
def test_a_patched_release_without_the_plugin(release):
    _passes(["patches.verify", release, "-k", ONE_FAMILY], {})
