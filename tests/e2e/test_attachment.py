"""SGLang with patched sources: it serves without our plugin, the plugin attaches nothing twice, a stale patch is refused."""

import os
import subprocess
import sys

import pytest

from benchmarks import launch
from patches import apply, sources, verify
from specprefill_sgl.hooks import HOOKS
from tests.support import reference
from tests.support.server import refused, serve, sparse_options
from tests.support.tiny_models import EOS, prompt_ids

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """Environment in which servers import a patched copy."""
    holder = verify.applies(sources.installed_release(), tmp_path_factory.mktemp("checkout"))
    return launch.python_path(holder)


@pytest.mark.parametrize("env", [{}, verify.NO_PLUGIN], ids=["plugin", "no plugin"])
def test_sources_serve_with_and_without_the_plugin(env, patched, pair_of, hugging_face, tmp_path):
    target, draft = pair_of("llama")
    ids = prompt_ids(1023, seed=1023)
    with serve(tmp_path, target, *sparse_options(draft), env=patched | env) as server:
        reply = server.generate(ids, custom={"spec_prefill_keep_ratio": 0.1, "spec_prefill_return_positions": True})
        assert server.state()["spec_prefill"]["attached"] == "sources"
    kept = reference.select_chunks(reference.draft_importance(hugging_face(draft), ids, eos_ids=(EOS,)), keep_ratio=0.1)
    assert reply["meta_info"]["spec_prefill"]["positions"] == kept
    assert reply["output_ids"] == reference.greedy(hugging_face(target), ids, kept, len(ids), 8)[0]
    assert "Applied 1 hook(s) to sglang.srt.managers.scheduler.Scheduler" not in server.log.read_text()


def test_unpatched_sources_without_the_plugin_know_no_flag(pair_of):
    """What makes the above a proof."""
    target, draft = pair_of("llama")
    status, output = refused(target, *sparse_options(draft), env=verify.NO_PLUGIN)
    assert status != 0
    assert "unrecognized arguments: --spec-prefill" in output


def test_check_says_how_hooks_are_attached(patched, pair_of):
    target, draft = pair_of("llama")
    words = ["check", "--model-path", str(target), "--spec-prefill-draft-model-path", str(draft), "--device", "cpu"]
    for env, way in ((patched, "sources"), ({}, "plugin")):
        run = [sys.executable, "-m", "specprefill_sgl", *words]
        done = subprocess.run(run, cwd=launch.ROOT, capture_output=True, text=True, timeout=200, env={**os.environ, **env})
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"hooks: {len(HOOKS)} of {len(HOOKS)} in place, attached by {way}\n" in done.stdout


def test_a_patch_of_another_version_is_refused(pair_of, tmp_path):
    release = sources.installed_release()
    holder = verify.applies(release, tmp_path)
    for path in apply.changed_files(release):
        file = holder / path
        file.write_text(file.read_text().replace("hooks.model:mask_ids", "hooks.model:mask_former_ids"))
    target, draft = pair_of("llama")
    status, output = refused(target, *sparse_options(draft), env=launch.python_path(holder))
    assert status != 0
    assert "prepare_for_extend was patched for another version of specprefill-sgl" in output
