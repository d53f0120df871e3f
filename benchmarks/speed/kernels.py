"""Scoring alone: time of one layer against the memory bound, bytes of keys over measured copy bandwidth.

`python -m benchmarks.speed.kernels`: on a GPU the Triton kernels and plain torch, without one plain torch only (and there, keys
of a few MB stay in the processor's cache, so that the copy's bandwidth is no bound for them).
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
_VOTES, _POOL = 8, 13
_COPIED = 1 << 28  # bytes that are copied to measure the bandwidth


def main() -> None:
    """One row per shape, length, method and round."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.kernels", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768, 131072])
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
    heads, kv_heads, dim = _SHAPES[shape]
    torch.manual_seed(0)
    slots = torch.randperm(length, device=device)
    keys = torch.randn(length, kv_heads, dim, device=device, dtype=torch.bfloat16)
    queries = torch.randn(_VOTES, heads, dim, device=device, dtype=torch.bfloat16)
    settings = {"scaling": dim**-0.5, "logit_cap": 0.0, "pool_kernel": _POOL}
    source = torch.empty(_COPIED // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    methods: dict[str, Callable] = {"torch": lambda queries, keys: layer_votes(queries, keys[slots], **settings)}
    if device.type == "cuda":
        from specprefill_sgl.scoring.triton_scoring import accumulate_votes

        packed, out = pack([slots], [_VOTES]), torch.zeros(_VOTES, length, device=device)
        methods["triton"] = lambda queries, keys: accumulate_votes(out, queries[None], keys, packed, **settings)
    bandwidths = [_COPIED / ms for ms in _times(lambda to, of: to.copy_(of), (target, source), rounds, device)]
    for method, call in methods.items():
        times = _times(call, (queries, keys), rounds, device)
        for number, (took, bandwidth) in enumerate(zip(times, bandwidths, strict=True)):
            yield {"method": method, "number": number, "ms": took, "bound_ms": keys.numel() * keys.element_size() / bandwidth}


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
