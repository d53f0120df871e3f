"""CPU platform for stock SGLang (design.md, "Without a GPU"): torch operators only, no compiled kernel package."""

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform


class CpuPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang's CPU device operations as an out-of-tree platform, so that native torch layers are used throughout."""

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()

    def get_default_attention_backend(self) -> str:
        """SGLang's attention in plain torch."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """Fused operators fall back to their `forward_native`."""
        return "native"

    def init_backend(self) -> None:
        """Called in each worker before models are built."""
        from specprefill_sgl.platforms.logit_caps import register

        register()
