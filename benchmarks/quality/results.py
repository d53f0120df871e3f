"""Raw results: one JSON object a line, the first of them the provenance; a run that was stopped goes on where it was."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_PACKAGES = ("sglang", "torch", "transformers", "numpy", "scipy")
_IDENTITY = ("method", "task", "length", "number", "keep_ratio", "depth", "batch", "settings")


class Results:
    """An open file of results; `add` writes a row at once. A run at another commit or with another command says so."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = read(path) if path.exists() else []
        self._known = {identity(row) for row in self.rows}
        now, before = provenance(), _last_provenance(path)
        self._file = path.open("a")
        if before is None or any(now[name] != before[name] for name in ("commit", "command")):
            self._file.write(json.dumps({"provenance": now}) + "\n")

    def __contains__(self, row: dict) -> bool:
        return identity(row) in self._known

    def add(self, row: dict) -> None:
        self.rows.append(row)
        self._known.add(identity(row))
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def identity(row: dict) -> str:
    """What makes two rows the same measurement."""
    return json.dumps([row.get(name) for name in _IDENTITY], sort_keys=True)


def read(path: Path, wanted: Callable[[dict], bool] = lambda row: True) -> list[dict]:
    """The rows of a file, without the provenance."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if "provenance" not in row and wanted(row)]


def _last_provenance(path: Path) -> dict | None:
    lines = path.read_text().splitlines() if path.exists() else []
    return next((row["provenance"] for row in map(json.loads, reversed(lines)) if "provenance" in row), None)


def provenance() -> dict:
    """Commit, command, versions, machine and date."""
    import psutil
    import torch

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    return {
        "commit": git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else ""),
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "hardware": f"{psutil.cpu_count()} CPU cores ({platform.machine()}), {device}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # scoring alone is measured where there is no SGLang
        return "not installed"


def _module() -> str:
    """The module that was started: `benchmarks.quality`, another benchmark."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec is not None else "?"
