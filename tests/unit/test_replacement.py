"""What the CPU platform puts in the place of SGLang's functions, and of torch's, reaches whoever imported them by name."""

import os
import subprocess
import sys
import types

import pytest
import torch

from specprefill_sgl.platforms import torch_device
from specprefill_sgl.platforms.replacement import replace


def test_replacements_reach_modules_that_imported_the_function_already(monkeypatch):
    defining, importing, bystander = (types.ModuleType(f"sglang.made_up_{i}") for i in range(3))
    for module in (defining, importing, bystander):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    defining.kernel = importing.alias = lambda: "triton"
    bystander.kernel = lambda: "other"
    replace("sglang.made_up_0", kernel=lambda: "torch")
    assert [defining.kernel(), importing.alias(), bystander.kernel()] == ["torch", "torch", "other"]


def test_a_function_that_is_gone_is_an_error():
    with pytest.raises(AttributeError, match="no_such_kernel"):
        replace("sglang.kernels.ops.mamba.causal_conv1d_triton", no_such_kernel=print)


_CONSUMERS = """
import importlib
import sglang.srt.model_executor.model_runner  # SGLang's workers import it first; it initialises the platform
for module in ("layers.attention.linear.gdn_backend", "models.qwen3_next", "models.qwen3_5", "models.qwen2_moe",
               "layers.attention.hybrid_linear_attn_backend", "layers.attention.linear.kernels.gdn_triton",
               "layers.attention.mamba.mamba", "layers.attention.linear.kernels.kda_triton"):
    for name, value in vars(importlib.import_module("sglang.srt." + module)).items():
        print(name, getattr(value, "__module__", ""))
"""


def test_a_worker_binds_the_torch_functions():
    """In a process of its own, as stock SGLang starts it."""
    environment = {**os.environ, "SGLANG_PLUGINS": "specprefill_cpu"}
    run = subprocess.run([sys.executable, "-c", _CONSUMERS], capture_output=True, text=True, env=environment, check=True)
    bound = dict(line.split(" ", 1) for line in run.stdout.splitlines() if " " in line)
    for name in (
        "causal_conv1d_fn",
        "causal_conv1d_update",
        "fused_gdn_gating",
        "chunk_gated_delta_rule",
        "fused_recurrent_gated_delta_rule_packed_decode",
        "fused_qkvzba_split_reshape_cat",
        "fused_qkvzba_split_reshape_cat_contiguous",
        "fused_sigmoid_mul",
        "fused_gate_sigmoid_mul",
        "fused_gate_sigmoid_mul_add",
        "track_mamba_states_all_layers",
        "track_mamba_states_if_needed",
        "causal_conv1d_fn_triton",
        "causal_conv1d_update_triton",
        "mamba_chunk_scan_combined",
        "selective_state_update",
        "chunk_kda",
        "fused_recurrent_kda_packed_decode",
    ):
        assert bound[name].startswith("specprefill_sgl.platforms."), name


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_torch_without_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.pin_memory)  # restored after the test
    monkeypatch.setattr(torch, "get_device_module", torch.get_device_module)
    torch_device.register()
    tensor = torch.arange(3)
    assert tensor.pin_memory() is tensor
    assert torch.get_device_module().current_device() == "cpu"
    assert torch.get_device_module("cuda") is torch.cuda
