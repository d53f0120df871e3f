"""What this machine has: a GPU or none, and which attention backends can serve on it. Nothing here holds the device."""

import functools
import subprocess
import sys
from importlib.util import find_spec

NO_GPU = "needs a GPU"
_ON_CPU = "torch_native"
BACKENDS = (_ON_CPU, "triton", "flashinfer", "fa3")
_HOPPER = 9


@functools.cache
def capability() -> int | None:
    """Major compute capability of the first GPU; None without one. Asked in another process."""
    program = "import torch; print(torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else '')"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    return int(run.stdout) if run.stdout.strip() else None


def has_gpu() -> bool:
    """Whether torch sees one."""
    return capability() is not None


def candidates() -> list[str]:
    """Attention backends to try: the CPU's where there is no GPU, and those of GPUs, which are then listed as not run."""
    return [name for name in BACKENDS if name != _ON_CPU or not has_gpu()]


def missing(backend: str) -> str | None:
    """Why an attention backend cannot serve here; None if it may."""
    if backend == _ON_CPU:
        return "is for machines without a GPU" if has_gpu() else None
    if not has_gpu():
        return NO_GPU
    if backend == "fa3" and capability() != _HOPPER:
        return f"needs a Hopper GPU, this one has compute capability {capability()}"
    if backend == "flashinfer" and find_spec("flashinfer") is None:
        return "flashinfer is not installed"
    return None
