"""CPU platform for stock SGLang: torch operators only, no compiled kernel package."""

import os
from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

_BINDING = "SGLANG_CPU_OMP_THREADS_BIND"


class CpuPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang's CPU device operations as an out-of-tree platform, so that native torch layers are used throughout."""

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()

    def get_device(self, device_id: int = 0) -> str:
        """What `--device` is where nobody said it: there SGLang asks for a name."""
        return "cpu"

    def get_default_attention_backend(self) -> str:
        """SGLang's attention in plain torch."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """Fused operators fall back to their `forward_native`."""
        return "native"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Give each rank its share of the cores where SGLang would refuse more ranks than NUMA nodes."""
        from sglang.srt.utils.numa_utils import get_cpu_ids_by_node  # sglang.srt.utils itself imports the platform

        ranks = server_args.tp_size * server_args.dp_size * server_args.pp_size
        if ranks > len(get_cpu_ids_by_node()):
            os.environ.setdefault(_BINDING, cores_per_rank(sorted(os.sched_getaffinity(0)), ranks))

    def support_mamba_cache_extra_buffer(self) -> bool:
        """Recurrent states are copied while requests go on from them, as on CUDA."""
        return True

    def get_torch_profiler_activity_str(self) -> str:
        """No activity of torch's: SGLang profiles CPUs anyway, and asks every out-of-tree platform for one more."""
        return "CPU_PLATFORM"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """What that name would record."""
        return torch.profiler.ProfilerActivity.CPU

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """Whether Triton's interpreter runs the small kernels that all of them need."""
        from specprefill_sgl.platforms import torch_speculation

        return torch_speculation.interprets()

    def init_backend(self) -> None:
        """Called in each worker before models are built."""
        from specprefill_sgl.platforms import (
            host_cache,
            host_transfer,
            torch_attention,
            torch_convolution,
            torch_data_parallel,
            torch_device,
            torch_gated_delta,
            torch_gates,
            torch_kimi_delta,
            torch_mamba2,
            torch_minimax,
            torch_snapshots,
            torch_speculation,
        )

        for part in (
            host_cache,
            host_transfer,
            torch_attention,
            torch_convolution,
            torch_data_parallel,
            torch_device,
            torch_gated_delta,
            torch_gates,
            torch_kimi_delta,
            torch_mamba2,
            torch_minimax,
            torch_snapshots,
            torch_speculation,
        ):
            part.register()


def cores_per_rank(cores: list[int], ranks: int) -> str:
    """SGLang's binding of cores to ranks: comma-separated cores, ranks separated by bars; ranks share when cores are few."""
    share = len(cores) // ranks
    groups = [cores[rank * share : (rank + 1) * share] or [cores[rank % len(cores)]] for rank in range(ranks)]
    return "|".join(",".join(map(str, group)) for group in groups)
