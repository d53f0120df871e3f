"""Which attention backend a draft gets: its own where the server's cannot serve it, and SGLang is asked as for a draft."""

import pytest

from specprefill_sgl import compat


@pytest.fixture
def config_of(model_of):
    from sglang.srt.configs.model_config import ModelConfig

    return lambda name: ModelConfig(model_path=str(model_of(name)), disable_hybrid_swa_memory=True)


@pytest.mark.parametrize(
    ("draft", "server", "expected"),
    [
        ("qwen3_moe", "trtllm_mla", "triton"),
        ("qwen3_moe", "flashmla", "triton"),
        ("qwen3_moe", "dsa", "triton"),
        ("qwen3_moe", "flashinfer", None),
        ("qwen3_moe", "fa3", None),
        ("qwen3_5", "cutedsl_mla", "triton"),
        ("deepseek_v3", "flashinfer", "triton"),  # its absorbed form refuses a prompt without prefix
        ("deepseek_v3", "trtllm_mha", "triton"),
        ("deepseek_v3", "fa3", None),
        ("deepseek_v3", "torch_native", None),
        ("gpt_oss", "flashinfer", "triton"),  # no sinks
        ("gpt_oss", "trtllm_mha", None),
        ("gpt_oss", "intel_amx", None),
    ],
)
@pytest.mark.parametrize("name", ["attention_backend", "prefill_attention_backend", "decode_attention_backend"])
def test_backend(config_of, draft, server, expected, name):
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(model_path="m", device="cpu", **{name: server})
    assert compat.draft_attention_backend(args, config_of(draft)) == expected


@pytest.mark.parametrize(("name", "attending"), [("qwen3_moe", None), ("qwen3_5", [3]), ("nemotron_h", [2, 5])])
def test_sglang_is_asked_as_for_a_draft_and_told_which_layers_attend(config_of, monkeypatch, name, attending):
    """Else it would take the target's backend, and of a hybrid the first layer as the one that attends."""
    from types import SimpleNamespace

    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.model_executor.model_runner_components.attention_backend_setup import resolve_attention_backend_strs

    from specprefill_sgl.models.runner import PrivateRunner

    def build(runner):
        runner.resolved = resolve_attention_backend_strs(model_runner=runner)
        runner.attn_backend = SimpleNamespace(full_attn_layers=None if attending is None else [0])

    monkeypatch.setattr(ModelRunner, "init_attention_backends", build)
    runner = object.__new__(PrivateRunner)
    runner.is_draft_worker, runner.draft_attention_backend = True, "triton"
    runner.model_config = config_of(name)
    runner.init_attention_backends()
    assert (runner.resolved.prefill, runner.resolved.decode) == ("triton", "triton")
    assert runner.attn_backend.full_attn_layers == attending


def test_latents_are_absorbed_whatever_the_prompt():
    """Under the name that is stamped on the draft's backend SGLang's dispatch never expands."""
    from types import SimpleNamespace

    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod

    from specprefill_sgl.models.latent import absorb_always

    backend = SimpleNamespace()
    absorb_always(backend)
    name = backend.prefill_attention_backend_str
    assert name == backend.decode_attention_backend_str
    batch = SimpleNamespace(forward_mode=ForwardMode.EXTEND, extend_prefix_lens_cpu=[0])
    attention = SimpleNamespace(use_fused_qk_rope=False)
    assert AttentionBackendRegistry.get_handler(name)(attention, batch) == AttnForwardMethod.MLA
