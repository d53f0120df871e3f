"""What describes the target is put aside while the draft works, and put back whatever happens."""

import pytest


@pytest.fixture
def of_the_target(published):
    """What SGLang's settings say of the target, and where its experts are."""
    from sglang.srt.runtime_context import get_exec, get_resources

    resources = get_resources()
    before, resources.expert_location_metadata = resources.expert_location_metadata, "of the target"
    states = {"enable_mamba_extra_buffer": True, "mamba_max_states_per_path": 2}
    with get_exec().mamba.override(**states), get_exec().moe.override(ep_dispatch_algorithm="static"):
        yield True, 2, "static", "of the target"
    resources.expert_location_metadata = before


def _seen():
    from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
    from sglang.srt.runtime_context import get_exec

    states, experts = get_exec().mamba, get_exec().moe
    return (
        states.enable_mamba_extra_buffer,
        states.mamba_max_states_per_path,
        experts.ep_dispatch_algorithm,
        get_global_expert_location_metadata(),
    )


def test_inside_and_after(of_the_target):
    from specprefill_sgl.draft.runner import own_settings

    assert _seen() == of_the_target
    with own_settings():
        assert _seen() == (False, -1, None, None)
        with own_settings():
            assert _seen() == (False, -1, None, None)
        assert _seen() == (False, -1, None, None)
    assert _seen() == of_the_target
    with pytest.raises(RuntimeError), own_settings():
        raise RuntimeError("a draft failed")
    assert _seen() == of_the_target
