"""Command-line arguments that the speed benchmarks share."""

import argparse
from pathlib import Path

from benchmarks import launch
from benchmarks.speed import pairs
from benchmarks.speed.servers import Sizes

_RESULTS = Path(__file__).parent / "results"


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Of `python -m benchmarks.speed.NAME`: the pair, the size of a chunk, where the rows go."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.speed.{name}", description=description)
    made.add_argument("--pair", choices=[*pairs.names(), *pairs.TRAINED], default="cpu-1-64")
    made.add_argument("--first-layers", type=int, help="the target's, in place of the draft: the method early-layers")
    made.add_argument("--chunked-prefill-size", type=int, default=2048)
    made.add_argument("--out", type=Path, help=f"default: results/{name}-PAIR.jsonl")
    launch.add_option(made)
    return made


def sizes(arguments: argparse.Namespace, tokens: int, keep_ratio: float = 0.1) -> Sizes:
    """What a benchmark's servers are started with, for so many tokens at once."""
    return Sizes(tokens, arguments.chunked_prefill_size, arguments.option, keep_ratio, arguments.first_layers)


def rows_of(name: str, arguments: argparse.Namespace) -> Path:
    """`--out`, or the benchmark's own file for the pair and its reader."""
    reader = "" if arguments.first_layers is None else f"-first-{arguments.first_layers}"
    return arguments.out or results(f"{name}-{arguments.pair}{reader}")


def results(stem: str) -> Path:
    """A file of rows in the benchmarks' folder of results."""
    return _RESULTS / f"{stem}.jsonl"
