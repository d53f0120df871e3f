"""Entry point `specprefill_cpu` of group `sglang.srt.platforms`: serve stock SGLang where there is no CUDA."""


def activate() -> str | None:
    """Name of the platform class, or None where CUDA is present: there SGLang's own platform serves."""
    import torch

    return None if torch.cuda.is_available() else "specprefill_sgl.platforms.cpu.CpuPlatform"
