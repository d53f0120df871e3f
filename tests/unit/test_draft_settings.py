"""What describes the target is put aside while the draft works, and put back whatever happens."""

from types import SimpleNamespace

import pytest


@pytest.fixture
def of_the_target(published):
    """What SGLang's settings say of the target, and where its experts are."""
    from sglang.srt.layers.moe.utils import MoeRunnerBackend
    from sglang.srt.runtime_context import get_exec, get_flags, get_resources

    from specprefill_sgl.models.runner import choose_expert_kernels

    flags = get_flags().moe
    kernels = flags.runner_backend, flags.speculative_runner_backend
    flags.runner_backend = flags.speculative_runner_backend = MoeRunnerBackend.FLASHINFER_CUTLASS
    choose_expert_kernels(_model("A"), _model("B"))
    resources = get_resources()
    before, resources.expert_location_metadata = resources.expert_location_metadata, "of the target"
    states = {"enable_mamba_extra_buffer": True, "mamba_max_states_per_path": 2}
    with get_exec().mamba.override(**states), get_exec().moe.override(ep_dispatch_algorithm="static"):
        yield "flashinfer_cutlass", True, 2, "static", "of the target"
    resources.expert_location_metadata = before
    flags.runner_backend, flags.speculative_runner_backend = kernels


def _model(architecture, quantization=None):
    return SimpleNamespace(hf_config=SimpleNamespace(architectures=[architecture]), quantization=quantization)


def _seen():
    from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
    from sglang.srt.runtime_context import get_exec, get_flags

    states, experts = get_exec().mamba, get_exec().moe
    return (
        get_flags().moe.runner_backend.value,
        states.enable_mamba_extra_buffer,
        states.mamba_max_states_per_path,
        experts.ep_dispatch_algorithm,
        get_global_expert_location_metadata(),
    )


def test_inside_and_after(of_the_target):
    from specprefill_sgl.models.runner import own_settings

    assert _seen() == of_the_target
    with own_settings():
        assert _seen() == ("auto", False, -1, None, None)
        with own_settings():
            assert _seen() == ("auto", False, -1, None, None)
        assert _seen() == ("auto", False, -1, None, None)
    assert _seen() == of_the_target
    with pytest.raises(RuntimeError), own_settings():
        raise RuntimeError("a draft failed")
    assert _seen() == of_the_target


@pytest.mark.parametrize(("draft", "kept"), [(_model("A", "fp8"), True), (_model("A"), False), (_model("B", "fp8"), False)])
def test_a_draft_like_the_target_runs_its_experts_as_it(of_the_target, draft, kept):
    from sglang.srt.layers.moe.utils import MoeRunnerBackend
    from sglang.srt.runtime_context import get_flags

    from specprefill_sgl.models.runner import choose_expert_kernels, own_settings

    get_flags().moe.speculative_runner_backend = MoeRunnerBackend.FLASHINFER_CUTLASS
    choose_expert_kernels(_model("A", "fp8"), draft)
    with own_settings():
        assert (get_flags().moe.runner_backend == MoeRunnerBackend.FLASHINFER_CUTLASS) == kept
