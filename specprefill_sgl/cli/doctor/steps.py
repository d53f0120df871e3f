"""The steps, each run as a process of its own with an end in time, and what is said of one that crashed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from specprefill_sgl.cli.doctor import machine
from specprefill_sgl.cli.doctor.checks import Recorder

_LIMIT_S = 300  # of one step
_FOLLOWS = re.compile(r"EOFError|RuntimeError: Rank \d+ scheduler died")  # of a launcher whose scheduler has failed
_PER_BACKEND = ("answers", "speed")


def names(backends: Sequence[str] | None) -> list[str]:
    """In order: what every machine has, then all answers, then all speeds, so that a short budget leaves out speeds."""
    chosen = backends or machine.candidates()
    return ["environment", "kernels", *(f"{step} {backend}" for step in _PER_BACKEND for backend in chosen)]


def run(name: str, folder: Path, ends: float) -> None:
    """Run one step in a process; whatever happens to it, there is a check that says so."""
    recorder, left = Recorder(name, folder), ends - time.monotonic()
    if left <= 0:
        recorder.not_run("step", "no time was left: --budget")
        return
    log = folder / f"{name.replace(' ', '-')}.log"
    words = [sys.executable, "-W", "ignore", "-m", "specprefill_sgl", "doctor", "--out", str(folder), "--step", name]
    with log.open("w") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(timeout=min(_LIMIT_S, left))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with servers that it has not ended
            process.wait()
    if status is None and left < _LIMIT_S:
        recorder.not_run("step", "it was ended with the time that was left: --budget")
    elif status is None:
        recorder.holds("step", False, f"did not end within {_LIMIT_S} s: {telling(log)}", log=log)
    elif status:
        recorder.holds("step", False, f"ended with status {status}: {telling(log)}", log=log)


def run_here(name: str, folder: Path) -> None:
    """What the process of a step does."""
    step, _, backend = name.partition(" ")
    recorder = Recorder(name, folder)
    if backend and (why := machine.missing(backend)):
        recorder.not_run("step", why)
        return
    module = import_module(f"specprefill_sgl.cli.doctor.{step}")
    function: Callable[..., None] = module.run
    function(recorder, *([backend] if backend else []))


def telling(log: Path) -> str:
    """The line of a log that says most likely what went wrong: the last that names an error of its own, else the last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"specprefill-sgl:|[\w.]+(Error|Exception)\b", line)]
    causes = [line for line in errors if not _FOLLOWS.match(line)]
    return (causes or errors or lines or ["its log is empty"])[-1][:300]
