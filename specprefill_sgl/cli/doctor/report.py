"""The table, the verdict with what to report, and where the figures come from."""

import functools
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from specprefill_sgl.cli.doctor.checks import FILE, Check, Status

PACKAGES = ("specprefill-sgl", "sglang", "torch", "triton", "transformers", "flashinfer-python", "sglang-kernel")
_WIDTH = 96


def provenance(argv: list[str]) -> str:
    """A line of JSON: time, command, commit, versions, machine."""
    return json.dumps(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": ["python", "-m", "specprefill_sgl", "doctor", *argv],
            "commit": _commit(),
            "versions": {name: version_of(name) for name in PACKAGES},
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": _device(),
        }
    )


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(found: list[Check]) -> str:
    """One line a check, cut to what a terminal shows; the file has all of it."""
    rows = [("step", "check", "", "found", "wanted"), *((c.step, c.name, c.status, _short(c.found), c.wanted) for c in found)]
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    padded = ([cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)] for row in rows)
    return "\n".join("  ".join((*cells, row[4])).rstrip() for cells, row in zip(padded, rows, strict=True))


def verdict(found: list[Check], folder: Path) -> int:
    """Print what to report of each failure; the exit status."""
    failed = [check for check in found if check.status is Status.FAILED]
    for check in failed:
        files = " and ".join(str(folder / name) for name in (FILE, check.log) if name)
        print(f"report: {check.step}, {check.name}: {check.found}" + (f" (wanted: {check.wanted})" if check.wanted else ""))
        print(f"        with {files}")
    counts = {status: sum(check.status is status for check in found) for status in Status}
    print("doctor: " + ", ".join(f"{count} {status}" for status, count in counts.items() if count))
    return int(bool(failed))


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def _commit() -> str | None:
    """Of a checkout."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def _device() -> str:
    """In a process of its own: this one must not hold the device."""
    program = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu')"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    return run.stdout.strip()
