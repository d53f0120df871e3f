"""The servers of a comparison: stock SGLang with the target (the control), the same with SpecPrefill, the draft alone."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks import launch
from benchmarks.speed import pairs

DUMMY = ("--load-format", "dummy")


class Servers(NamedTuple):
    """URLs, and the log of the server with SpecPrefill."""

    dense: str
    sparse: str
    draft: str
    log: Path


class Sizes(NamedTuple):
    """What servers are started with."""

    tokens: int  # that must fit into the pools at once
    chunked_prefill_size: int
    options: tuple[str, ...] = ()  # more server flags, for all three; those of the plugin for its server alone
    keep_ratio: float = 0.1  # of requests that do not say
    first_layers: int | None = None  # of the target that read, in place of the pair's draft


@contextlib.contextmanager
def serve(name: str, folder: Path, sizes: Sizes, *, with_draft: bool = True) -> Iterator[Servers]:
    """Start the servers of a pair; they sleep while they are idle, so that one of them has the machine to itself."""
    target, draft = pairs.write(name, folder, sizes.first_layers)
    everybody, own = _split(sizes.options)
    reader = {} if sizes.first_layers is None else {"method": "early-layers", "layers": sizes.first_layers}
    sparse = launch.sparse_flags(
        None if reader else draft,
        **reader,
        min_tokens=16,
        draft_max_tokens=sizes.tokens,
        keep_ratio=sizes.keep_ratio,
    )
    with contextlib.ExitStack() as stack:

        def start(model: Path, role: str, *options: str, env: dict[str, str] | None = None) -> str:
            weights = [] if name in pairs.TRAINED else DUMMY
            words = command(model, sizes, *weights, *options, *everybody)
            return stack.enter_context(launch.serve(words, folder / f"{role}.log", env))

        dense = start(target, "dense", env=launch.CONTROL)
        with_plugin = start(target, "sparse", *sparse, *own)
        alone = start(draft, "draft", env=launch.CONTROL) if with_draft else ""
        yield Servers(dense, with_plugin, alone, folder / "sparse.log")


def peak_mib(url: str) -> float:
    """The most resident memory that each process of a server has had, summed; an accelerator's own is not in it."""
    port = url.rsplit(":", 1)[1]
    (server,) = (process for process in psutil.Process().children() if port in process.cmdline())
    status = [Path(f"/proc/{process.pid}/status").read_text() for process in (server, *server.children(recursive=True))]
    return round(sum(int(line.split()[1]) for text in status for line in text.splitlines() if "VmHWM" in line) / 1024, 1)


def _split(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags, each with its values: those that stock SGLang has, and the plugin's."""
    parts: tuple[list[str], list[str]] = ([], [])
    for word in options:
        if word.startswith("--"):
            mine = parts[word.startswith("--spec-prefill")]
        mine.append(word)
    return parts


def command(model: Path, sizes: Sizes, *options: str) -> list[str]:
    """`sglang.launch_server` for one of a pair's models, whose weights are there unless `DUMMY` is among the options."""
    return launch.command(
        model,
        "--sleep-on-idle",
        *options,
        dtype="bfloat16",
        max_total_tokens=str(sizes.tokens + 4096),
        chunked_prefill_size=str(sizes.chunked_prefill_size),
        max_running_requests="32",
    )
