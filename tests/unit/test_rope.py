"""Rotary embedding off and on again: every kind that SGLang's own classes make, against what they do themselves."""

import pytest
import torch

HEAD = 32
KINDS = {
    "plain": (HEAD, None, True),
    "interleaved": (HEAD, None, False),
    "llama3": (
        HEAD,
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        True,
    ),
    "partial": (HEAD // 2, None, True),
    "yarn": (HEAD, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, True),
}
POSITIONS = torch.tensor([0, 1, 2, 77, 511, 1500, 2047])


@pytest.fixture(params=KINDS, scope="module")
def rotary(request):
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    dim, scaling, neox = KINDS[request.param]
    rotary = get_rope(HEAD, dim, 2048, 10000, neox, scaling, torch.float32)
    if request.param == "yarn":
        assert rotary.mscale != 1  # or nothing is shown of its length
    return rotary


def test_rotation_is_the_layers_own(rotary):
    from specprefill_sgl.methods.kv_prediction import rope

    keys = torch.randn(len(POSITIONS), 3, HEAD)
    _, wanted = rotary.forward_native(POSITIONS, torch.zeros(len(POSITIONS), 3 * HEAD), keys.flatten(1).clone())
    rope.check(rotary)
    torch.testing.assert_close(rope.rotate(keys, POSITIONS, rotary), wanted.view_as(keys), atol=1e-6, rtol=1e-6)


def test_derotation_is_its_inverse(rotary):
    from specprefill_sgl.methods.kv_prediction import rope

    keys = torch.randn(len(POSITIONS), 3, HEAD)
    there = rope.rotate(keys, POSITIONS, rotary)
    assert (there[1:] - keys[1:]).abs().amax(dim=(1, 2)).min() > 0.1
    torch.testing.assert_close(rope.derotate(there, POSITIONS, rotary), keys, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(
        rope.rotate(rope.derotate(keys, POSITIONS, rotary), POSITIONS, rotary), keys, atol=2e-6, rtol=1e-5
    )


def test_three_dimensional_positions_are_refused():
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    from specprefill_sgl.methods.kv_prediction import rope

    scaling = {"rope_type": "default", "mrope_section": [4, 6, 6]}
    with pytest.raises(ValueError, match="MRotaryEmbedding"):
        rope.check(get_rope(HEAD, HEAD, 2048, 10000, True, scaling, torch.float32))
