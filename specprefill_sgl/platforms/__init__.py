"""Entry point `specprefill_cpu` of group `sglang.srt.platforms`: serve stock SGLang where there is no accelerator."""


def activate() -> str | None:
    """Name of the platform class, or None where there is an accelerator: there SGLang's own platform serves."""
    import torch

    return None if torch.accelerator.is_available() else "specprefill_sgl.platforms.cpu.CpuPlatform"
