"""The CPU platform: where it activates and how it shares cores between ranks."""

import pytest
import sglang.srt.managers.scheduler  # noqa: F401  SGLang loads the platform, never the other way round

from specprefill_sgl import platforms


@pytest.mark.parametrize(("cuda", "named"), [(True, None), (False, "specprefill_sgl.platforms.cpu.CpuPlatform")])
def test_never_activates_where_cuda_is_present(monkeypatch, cuda, named):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert platforms.activate() == named


@pytest.mark.parametrize(
    ("cores", "ranks", "binding"),
    [([0, 1], 2, "0|1"), ([0, 1, 2, 3, 4], 2, "0,1|2,3"), ([7], 2, "7|7"), ([4, 9], 3, "4|9|4")],
)
def test_cores_per_rank(cores, ranks, binding):
    from specprefill_sgl.platforms.cpu import cores_per_rank

    assert cores_per_rank(cores, ranks) == binding


def test_device_is_optional(pair_of):
    from sglang.srt.arg_groups.model_override_base import resolved_view
    from sglang.srt.server_args import prepare_server_args

    server_args = prepare_server_args(["--model-path", str(pair_of("llama")[0])])
    server_args.resolve_once()
    view = resolved_view(server_args)
    assert (view.device, view.attention_backend) == ("cpu", "torch_native")


def test_logit_cap_in_place():
    import torch

    from specprefill_sgl.platforms.torch_attention import cap_in_place

    logits = torch.tensor([[-100.0, 0.0, 1.0, 100.0]])
    wanted = 30 * torch.tanh(logits / 30)
    assert cap_in_place(logits, 30.0) is logits
    torch.testing.assert_close(logits, wanted)
