"""Scoring alone: time of one layer against the memory bound, bytes of keys over measured copy bandwidth.

`python -m benchmarks.speed.kernels`: on a GPU the Triton kernels and plain torch, without one plain torch only (and there, keys
of a few MB stay in the processor's cache, so that the copy's bandwidth is no bound for them).

Votes are the paper's, eight by all heads, and those of `best`'s window, 48 by eight heads: of one layer here, which is the most
that eight calibrated heads can cost, and of as many key heads as there are, so that all keys are read.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.quality.results import Results, read
from benchmarks.speed import arguments as shared
from benchmarks.speed import drawing
from benchmarks.speed.report import summary
from specprefill_sgl.scoring.packed import pack
from specprefill_sgl.scoring.torch_scoring import layer_votes

_SHAPES = {"Llama-3.2-1B": (32, 8, 64), "Llama-3.1-8B": (32, 8, 128), "cpu-1-64": (4, 2, 64)}  # heads, kv heads, head size
_COPIED = 1 << 28  # bytes that are copied to measure the bandwidth


class _Votes(NamedTuple):
    """Who votes, and how wide attention is pooled; `chosen` heads, or the maximum over all."""

    rule: str
    votes: int
    chosen: int | None
    pool_kernel: int


_VOTES = (_Votes("paper", 8, None, 13), _Votes("best", 48, 8, 31))


def main() -> None:
    """One row per shape, length, method and round."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.kernels", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768, 131072], help="above 52")
    parser.add_argument("--rounds", type=int, default=20)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--out", type=Path, default=shared.results(f"kernels-{device}"))
    arguments = parser.parse_args()
    arguments.out.unlink(missing_ok=True)
    results = Results(arguments.out)
    for shape in tqdm(_SHAPES, desc="shapes"):
        for length in arguments.lengths:
            for row in _rows(shape, length, arguments.rounds, torch.device(device)):
                results.add({"task": shape, "length": length, **row})
    found = read(arguments.out)
    print(table(found))
    plot(found, arguments.out.with_suffix(".png"))


def table(rows: list[dict]) -> str:
    """Markdown: medians, and how much of the bound is reached."""
    lines = ["| shape | tokens | method | ms | bound ms | bound / time |", "|---" * 6 + "|"]
    for cell in sorted({(row["task"], row["length"], row["method"]) for row in rows}):
        mine = [row for row in rows if (row["task"], row["length"], row["method"]) == cell]
        took, bound = (np.median([row[name] for row in mine]) for name in ("ms", "bound_ms"))
        reached = summary(mine, lambda row: row["bound_ms"] / row["ms"], 3)
        lines.append("| " + " | ".join(map(str, cell)) + f" | {took:.3f} | {bound:.3f} | {reached} |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Median time over prompt tokens, a line per shape and method; the shape's bound dashed."""
    with drawing.axes(path, "prompt tokens", "ms a layer (dashed: bytes of keys / copy bandwidth)") as axes:
        for shape, method in sorted({(row["task"], row["method"]) for row in rows}):
            mine = [row for row in rows if (row["task"], row["method"]) == (shape, method)]
            lengths = sorted({row["length"] for row in mine})
            took, bound = (
                [np.median([row[name] for row in mine if row["length"] == length]) for length in lengths]
                for name in ("ms", "bound_ms")
            )
            (line,) = axes.loglog(lengths, took, marker="o", label=f"{shape}, {method}")
            axes.loglog(lengths, bound, linestyle="--", color=line.get_color(), alpha=0.6)


def _rows(shape: str, length: int, rounds: int, device: torch.device) -> Iterator[dict]:
    _, kv_heads, dim = _SHAPES[shape]
    torch.manual_seed(0)
    slots = torch.randperm(length, device=device)
    keys = torch.randn(length, kv_heads, dim, device=device, dtype=torch.bfloat16)
    source = torch.empty(_COPIED // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidths = [_COPIED / ms for ms in _times(lambda to, of: to.copy_(of), (target, source), rounds, device)]
    for votes in _VOTES:
        for method, (call, queries) in _methods(votes, shape, slots).items():
            times = _times(call, (queries, keys), rounds, device)
            for number, (took, bandwidth) in enumerate(zip(times, bandwidths, strict=True)):
                bound = keys.numel() * keys.element_size() / bandwidth
                yield {"method": method, "number": number, "ms": took, "bound_ms": bound}


def _methods(votes: _Votes, shape: str, slots: torch.Tensor) -> dict[str, tuple[Callable, torch.Tensor]]:
    """What computes these votes, by name: a call of queries and keys, and queries [votes, heads, head_dim] for it."""
    heads, _, dim = _SHAPES[shape]
    length, device = len(slots), slots.device
    visible, counted, chosen, voters = [length] * votes.votes, (0, length), None, "all heads"
    if votes.chosen:
        visible, counted = list(range(length - votes.votes + 1, length + 1)), (4, length - votes.votes)
        chosen = list(range(0, heads, max(heads // votes.chosen, 1)))
        voters = f"{len(chosen)} chosen heads"
    settings = {"scaling": dim**-0.5, "logit_cap": 0.0, "pool_kernel": votes.pool_kernel, "heads": chosen}
    sees = torch.tensor(visible, device=device)

    def plain(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return layer_votes(queries, keys[slots], visible=sees, counted=counted, **settings)

    methods: dict[str, Callable] = {"torch": plain}
    if device.type == "cuda":
        from specprefill_sgl.scoring.triton_scoring import accumulate_votes

        packed, out = pack([slots], [visible], [counted]), torch.zeros(votes.votes, length, device=device)
        methods["triton"] = lambda queries, keys: accumulate_votes(out, queries[None], keys, packed, **settings)
    queries = torch.randn(votes.votes, heads, dim, device=device, dtype=torch.bfloat16)
    name = f"{votes.rule} ({votes.votes} votes, {voters}, pooled {votes.pool_kernel})"
    return {f"{name}, {method}": (call, queries) for method, call in methods.items()}


def _times(call: Callable, arguments: tuple[torch.Tensor, ...], rounds: int, device: torch.device) -> list[float]:
    """Milliseconds of each of `rounds` calls; on a GPU by flashinfer's timer, in a CUDA graph, with other copies each time.

    The calls before them, which do not count, compile what is to be compiled.
    """
    if device.type == "cuda":
        from flashinfer.testing import bench_gpu_time

        return bench_gpu_time(call, repeat_iters=rounds, dry_run_iters=3, use_cuda_graph=True, input_args=arguments)
    call(*arguments)
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call(*arguments)
        found.append((time.perf_counter() - start) * 1e3)
    return found


if __name__ == "__main__":
    main()
