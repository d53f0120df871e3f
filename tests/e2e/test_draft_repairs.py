"""What SGLang's `is_draft_worker` does to a draft that is a whole model: without each repair it stops or scores wrongly.

With none undone the scores are transformers', so what is wrong without one is wrong for want of it.
"""

import pytest

from benchmarks.launch import LaunchError
from tests.support.families import FAMILIES
from tests.support.faults import plugin_on_path
from tests.support.matrix import SPARSE, Matrix
from tests.support.server import serve, sparse_options
from tests.support.tiny_models import prompt_ids

pytestmark = pytest.mark.slow

# what is undone -> (target, draft, how)
UNDONE = {
    "nothing": ("qwen3_5", "qwen3_5", ""),
    "settings of its own": ("qwen3_5", "qwen3_moe", "runner._OWN_STATES = {}"),
    "kernels of its experts": ("nemotron_h", "qwen3_moe", "private.choose_expert_kernels = lambda *_: None"),
    "state pool": ("qwen3_moe", "qwen3_5", "del runner._OwnPools._build_hybrid_req_pool"),
    "key pool": ("qwen3_moe", "qwen3_5", "del runner._OwnPools._build_hybrid_linear_kv_pool"),
    "attending layers": ("qwen3_moe", "qwen3_5", "del runner.PrivateRunner.init_attention_backends"),
    "states cleared and copied": (
        "qwen3_moe",
        "qwen3_5",
        "del runner.PrivateRunner._maybe_execute_deferred_mamba_cow_and_clear",
    ),
    "cache of states": (
        "qwen3_moe",
        "qwen3_5",
        "prefix_cache.HybridReqToTokenPool = type('Nothing', (), {})",
    ),
    "nothing, expanding latents": ("qwen3_moe", "deepseek_v3", "expand()"),
    "absorption": ("qwen3_moe", "deepseek_v3", "expand(); private.absorb_always = lambda backend: None"),
}
_PLUGIN = """
def register():
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    HookRegistry.register("sglang.srt.managers.scheduler.Scheduler.maybe_init_draft_worker", undo, HookType.BEFORE)


def expand():
    # as SGLang's own attention backends do with a prompt that has no prefix
    from sglang.srt.models.deepseek_common import attention_backend_handler as handler
    handler.AttentionBackendRegistry.register("torch_native", handler.handle_attention_triton)


def undo(*_):
    from specprefill_sgl.models import prefix_cache, private, runner
    {how}
    print("undone")
"""


@pytest.mark.parametrize("undone", sorted(UNDONE))
def test_without_it_the_draft_is_wrong(undone, model_of, hugging_face, tmp_path):
    target, draft, how = UNDONE[undone]
    folders = model_of(target), model_of(draft, seed=8)
    plugin = plugin_on_path(tmp_path / "plugin", "undoing", _PLUGIN.format(how=how))
    env = {**FAMILIES[draft].env, **FAMILIES[target].env, **plugin}
    wrong = None
    try:
        options = [*sparse_options(folders[1]), "--chunked-prefill-size", "256"]
        with serve(tmp_path, folders[0], *options, env=env) as server:
            wrong = _first_wrong_scores(server, hugging_face(folders[1]))
    except LaunchError as error:
        wrong = error
    log = next(tmp_path.glob("server-*.log")).read_text()
    assert "undone" in log.splitlines()
    if isinstance(wrong, LaunchError):  # it stopped for want of a draft, not of a port
        assert f"--spec-prefill-draft-model-path {folders[1]}: the draft" in log
    assert (wrong is None) == undone.startswith("nothing"), wrong


def _first_wrong_scores(server, draft) -> AssertionError | None:
    """Of prompts of several chunks, of one that shares a beginning with another, of one in the place of another."""
    asker = Matrix(server, None, draft, 0)
    text = prompt_ids(500, seed=21)
    for ids in (prompt_ids(300, seed=1), text + prompt_ids(90, seed=2), text + prompt_ids(70, seed=3), prompt_ids(200, seed=4)):
        reply = asker.ask(ids, SPARSE, new_tokens=1)
        if not reply["meta_info"]["spec_prefill"]["applied"]:
            return AssertionError(reply["meta_info"]["spec_prefill"]["reason"])
        try:
            asker.scores(reply, ids)
        except AssertionError as error:
            return error
    return None
