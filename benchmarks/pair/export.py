"""Writes a trained model as it is shipped: bf16 safetensors, configuration, tokenizer, provenance and loss curve."""

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib

_PACKAGES = ("torch", "transformers", "tokenizers", "sglang")
_SMOOTHED = 20  # steps


def write(model, tokenizer, work: Path, out: Path) -> None:
    """`out` is replaced; `work` holds the log of the training."""
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    rows = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    (out / "provenance.json").write_text(json.dumps(_provenance(model, rows), indent=2) + "\n")
    _plot(rows, out / "loss.png")


def _provenance(model, rows: list[dict]) -> dict:
    tail = rows[-_SMOOTHED:]
    return {
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip(),
        "command": " ".join(["python", "-m", "benchmarks.pair", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}},
        "hardware": _hardware(),
        "seconds": rows[-1]["seconds"],
        "steps": len(rows),
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_without_embedding": sum(p.numel() for p in model.model.layers.parameters()),
        "last_steps": {name: sum(row[name] for row in tail) / len(tail) for name in ("answers", "language", "first_right")},
    }


def _hardware() -> str:
    import psutil

    return (
        f"{psutil.cpu_count()} CPU cores ({platform.machine()}), {psutil.virtual_memory().total // 2**30} GiB, no accelerator"
    )


def _plot(rows: list[dict], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, left = pyplot.subplots(figsize=(8, 4.5))
    right = left.twinx()
    for axis, name, colour in ((left, "answers", "C0"), (left, "language", "C1"), (right, "first_right", "C2")):
        means = [sum(row[name] for row in rows[max(0, at - _SMOOTHED) : at + 1]) for at in range(len(rows))]
        values = [mean / min(at + 1, _SMOOTHED + 1) for at, mean in enumerate(means)]
        axis.plot([row["step"] for row in rows], values, colour, label=name)
    left.set_xlabel("step")
    left.set_ylabel("cross entropy (nats)")
    right.set_ylabel("first answer token right")
    right.set_ylim(0, 1.02)
    figure.legend(loc="upper right", bbox_to_anchor=(0.88, 0.6))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
