"""Real SGLang servers for the demo, the benchmarks and the tests: start one, wait until it is healthy, end exactly it."""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from specprefill_sgl.cli.doctor import server

START_DEADLINE_S = 900 if torch.cuda.is_available() else 300  # a fresh GPU machine compiles kernels first
CONTROL = server.STOCK  # on our platform, our plugin off
ROOT = Path(__file__).resolve().parents[1]
TARGET, DRAFT = (ROOT / "benchmarks" / "pair" / role for role in ("target", "draft"))  # trained, shipped
HEADS = DRAFT.with_name("heads.json")  # the draft's, calibrated
VOCABULARY = 12_000  # ids that every model of the benchmarks has
start_seconds: list[float] = []  # of each server that this process started
_ON_CPU = {"--device": "cpu", "--attention-backend": "torch_native", "--mem-fraction-static": "0.2"}
LaunchError, flush, free_port = server.ServerError, server.flush_cache, server.free_port


def command(model: Path, *options: str, **defaults: str) -> list[str]:
    """`sglang.launch_server` for a small model; given options beat the defaults (`max_total_tokens="40000"`, ...)."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in defaults.items()}
    if not torch.cuda.is_available():
        flags = {**_ON_CPU, **flags}
    words = [word for pair in flags.items() if pair[0] not in options for word in pair]
    return [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model.resolve()), *words, *options]


def sparse_flags(draft: Path | str | None, **options: object) -> list[str]:
    """`--spec-prefill` with a draft, a folder or a name, if any; `min_tokens=16` is `--spec-prefill-min-tokens 16`."""
    path = draft.resolve() if isinstance(draft, Path) else draft
    values = ({} if path is None else {"draft_model_path": path}) | options
    words = [word for name, value in values.items() for word in (f"--spec-prefill-{name.replace('_', '-')}", str(value))]
    return ["--spec-prefill", *words]


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--option`: more words for the server's command line, as a tuple that is complete with its dashes."""
    parser.add_argument(
        "--option",
        nargs="+",
        action=_ServerFlag,
        default=(),
        metavar="WORD",
        help="one more server flag and its values, without its dashes: --option dp-size 2; may be given again",
    )


class _ServerFlag(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), f"--{values[0]}", *values[1:]))


@contextlib.contextmanager
def serve(words: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[str]:
    """URL of a server that is ready; it runs in the folder of its log, and its process group ends with the context."""
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*words, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **python_path(), **(env or {})},
            start_new_session=True,
            cwd=log.parent,
        )
    try:
        url, begin = f"http://127.0.0.1:{port}", time.monotonic()
        if not server.becomes_healthy(process, url, START_DEADLINE_S):
            tail = "\n".join(log.read_text().splitlines()[-30:])
            raise LaunchError(f"the server did not start; the end of {log} is:\n{tail}")
        start_seconds.append(time.monotonic() - begin)
        yield url
    finally:
        end(process)


def plugin_environment(folder: Path, name: str, entry_point: str) -> dict[str, str]:
    """Environment in which servers load one more SGLang plugin, `module:function`, found in `folder` or in this project."""
    metadata = folder / f"{name}-0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{name} = {entry_point}\n")
    return python_path(folder)


def python_path(*folders: Path) -> dict[str, str]:
    """Environment in which servers import this tree, whatever is installed, and from where this process was told to import.

    So tests run against another SGLang than the installed one: a patched copy, another release.
    """
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join(filter(None, (*map(str, folders), str(ROOT), *inherited)))}


def random_ids(draw: random.Random, length: int) -> list[int]:
    """A prompt that every model of the benchmarks can read."""
    return [draw.randrange(3, VOCABULARY) for _ in range(length)]


def end(process: subprocess.Popen) -> None:
    """End a process started in a session of its own, with everything it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
