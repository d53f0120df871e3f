"""Step `environment`: versions, device, attention backends, and whether every hook is in place."""

from specprefill_sgl.cli.doctor import machine, report
from specprefill_sgl.cli.doctor.checks import Recorder


def run(recorder: Recorder) -> None:
    """Loads SGLang as a server would."""
    from specprefill_sgl import compat

    tested = ", ".join(compat.releases.TESTED)
    for name in report.PACKAGES:
        found = report.version_of(name)
        if name == "sglang":
            recorder.holds(f"version of {name}", found in compat.releases.TESTED, found, tested)
        else:
            recorder.measured(f"version of {name}", found or "not installed")
    _device(recorder)
    for backend in machine.candidates():
        why = machine.missing(backend)
        recorder.measured(f"attention backend {backend}", why or "can serve")
    _hooks(recorder)


def _device(recorder: Recorder) -> None:
    import torch

    if not machine.has_gpu():
        recorder.not_run("device", f"{machine.NO_GPU}: servers run on the CPU platform")
        return
    properties = torch.cuda.get_device_properties(0)
    recorder.measured("device", f"{properties.name}, {properties.total_memory >> 30} GiB, CUDA {torch.version.cuda}")


def _hooks(recorder: Recorder) -> None:
    from sglang.srt.plugins import load_plugins

    from specprefill_sgl.config import ConfigError
    from specprefill_sgl.hooks import HOOKS, attachment, verify

    load_plugins()
    try:
        verify()
    except ConfigError as error:
        recorder.holds("hooks", False, error, f"{len(HOOKS)} in place")
    else:
        recorder.holds("hooks", True, f"{len(HOOKS)} in place, attached by {attachment.attached()}")
    other = [hook.target for hook in HOOKS if attachment.parameters(hook) != hook.parameters]
    recorder.holds("parameters of hooked functions", not other, ", ".join(other) or "as expected", "as expected")
