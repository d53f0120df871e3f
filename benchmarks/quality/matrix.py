"""The matrix method x keep ratio x length, the needle's depth, and the ablations: which requests to send to which server."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from benchmarks import kv_prediction, launch
from benchmarks.quality import ask, tasks
from benchmarks.quality.controls import CONTROLS
from benchmarks.quality.results import Results
from benchmarks.quality.server import QualityServer, serve

KEEP_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
LENGTHS = (512, 1024, 2048, 4096, 8192)
SPECPREFILL, SELF_DRAFT, BEST = "specprefill", "target_as_draft", "best"  # the first two by the paper's rule
EARLY_LAYERS = {f"early_layers_{count}": count for count in (2, 3)}  # by `best`, as is the next
LAZY = {"lazy_2": ("2", "best"), "lazy_2_paper": ("2", "paper"), "lazy_2_3": ("2,3", "best")}  # its layers, the rule
OWN_TOKENS = "own_tokens"  # the real model as draft, whose tokenizer is another
METHODS = (ask.DENSE, SPECPREFILL, SELF_DRAFT, *CONTROLS, BEST, *ask.RECOVERED, *EARLY_LAYERS, *LAZY, OWN_TOKENS)
PREDICTED = tuple(kv_prediction.PREDICTORS)  # measured where they are named only
_RECOVERED = "recovered"  # a server with its radix cache on
_ALONE = (SELF_DRAFT, *EARLY_LAYERS, *LAZY, OWN_TOKENS, *PREDICTED)
_OWN_SERVERS = {name: name for name in _ALONE} | dict.fromkeys(ask.RECOVERED, _RECOVERED)
_PAPER = (SPECPREFILL, SELF_DRAFT, ask.PAPER_BACKFILLED, *CONTROLS)
DEPTHS = 20
ABLATIONS: dict[str, tuple] = {
    "lookahead": (1, 4, 8, 16),
    "pool_kernel": (1, 5, 13, 31),
    "chunk_size": (8, 16, 32, 64),
    "over_heads": ("max", "mean"),
    "positions": ("original", "renumbered"),
}


@dataclass(frozen=True)
class Block:
    """Requests that meet one selector: `settings` differ from the defaults only in ablations."""

    method: str
    cells: list[tuple[str, int, int, float, float | None]]  # task, length, number, keep ratio, depth
    settings: dict = field(default_factory=dict)


def main_blocks(methods, names, lengths, keep_ratios, examples: Callable[[int], int]) -> list[Block]:
    """One block per method; dense has one keep ratio."""
    blocks = []
    for method in methods:
        ratios = (1.0,) if method == ask.DENSE else [r for r in keep_ratios if r < 1 or method == SPECPREFILL]
        numbers = [(task, n, i) for n in lengths for task in names for i in range(examples(n))]
        blocks.append(Block(method, [(*cell, ratio, None) for cell, ratio in itertools.product(numbers, ratios)]))
    return blocks


def depth_blocks(lengths, examples: int, keep_ratios=(0.1, 0.2)) -> list[Block]:
    """A single needle at twenty depths."""
    depths = [index / (DEPTHS - 1) for index in range(DEPTHS)]
    cells = [("single_needle", n, i, depth) for n in lengths for depth in depths for i in range(examples)]
    return [
        Block(ask.DENSE, [(task, n, i, 1.0, depth) for task, n, i, depth in cells]),
        Block(
            SPECPREFILL, [(task, n, i, ratio, depth) for (task, n, i, depth), ratio in itertools.product(cells, keep_ratios)]
        ),
    ]


def ablation_blocks(names, length: int, examples: int, keep_ratios=(0.1, 0.2)) -> list[Block]:
    """One setting changed at a time."""
    cells = [(task, length, i, ratio, None) for task in names for i in range(examples) for ratio in keep_ratios]
    return [Block(SPECPREFILL, cells, {name: value}) for name, values in ABLATIONS.items() for value in values]


def run(blocks: list[Block], target: Path, draft: Path, results: Results, folder: Path, count_tokens) -> None:
    """Send what is not in the results yet; methods that do not read with the draft have servers of their own."""
    for name in ("pair", *dict.fromkeys(_OWN_SERVERS.values())):
        mine = [block for block in blocks if _OWN_SERVERS.get(block.method, "pair") == name]
        if any(_row(block, cell) not in results for block in mine for cell in block.cells):
            with _serving(name, target, draft, folder / name) as server:
                send(mine, server, results, count_tokens)


def _serving(reader: str, target: Path, draft: Path, folder: Path) -> contextlib.AbstractContextManager[QualityServer]:
    """A server whose prompts are read by the pair's draft, or by what a method is named after."""
    every: tuple[str, ...] = ("--disable-radix-cache",)
    if reader == _RECOVERED:  # the reader must not lose a prompt while it is answered
        every = ("--spec-prefill-draft-max-tokens", "100000", "--spec-prefill-backfill-tokens", "512")
    if reader in ("pair", _RECOVERED):
        heads = ("--spec-prefill-heads", str(launch.HEADS)) if draft == launch.DRAFT else ()
        return serve(target, draft, folder, *every, *heads)
    if reader == SELF_DRAFT:
        return serve(target, target, folder, *every)
    if reader == OWN_TOKENS:
        from benchmarks import real_model

        return serve(target, real_model.folder(), folder, *every, "--spec-prefill-draft-tokenizer", "own")
    if reader in PREDICTED:  # with the radix cache, where predictions are handed over
        own = None if reader in kv_prediction.FIRST_LAYERS else draft
        predictor = ("--spec-prefill-predictor", str(kv_prediction.PREDICTORS[reader]))
        return serve(target, own, folder, *predictor, method="kv-prediction")
    if reader in LAZY:
        inside, selection = LAZY[reader]
        rule = ("--spec-prefill-layers", inside, "--spec-prefill-selection", selection)
        return serve(target, None, folder, *every, *rule, method="lazy")
    layers = ("--spec-prefill-layers", str(EARLY_LAYERS[reader]))
    return serve(target, None, folder, *every, *layers, method="early-layers")


def send(blocks: list[Block], server: QualityServer, results: Results, count_tokens) -> None:
    """Send what is not in the results yet to a running server, one block after the other."""
    todo = [(block, [cell for cell in block.cells if _row(block, cell) not in results]) for block in blocks]
    with tqdm(total=sum(len(cells) for _, cells in todo), smoothing=0.05, desc="requests") as bar:
        for block, cells in todo:
            if cells:
                server.choose(selection="paper" if block.method in (*_PAPER, ask.DENSE) else "best", **block.settings)
                bar.set_postfix_str(f"{block.method} {block.settings or ''}")
                at_once = 1 if block.method in ask.ALONE else ask.IN_FLIGHT
                ask.ask_all(list(_jobs(block, cells, server.url, count_tokens)), results.add, bar, at_once)


def _row(block: Block, cell: tuple) -> dict:
    task, length, number, ratio, depth = cell
    return {
        "method": block.method,
        "task": task,
        "length": length,
        "number": number,
        "keep_ratio": ratio,
        "depth": depth,
        "settings": block.settings,
    }


def _jobs(block: Block, cells: list[tuple], url: str, count_tokens) -> Iterator[Callable[[], dict]]:
    for cell in cells:
        yield functools.partial(_job, block, cell, url, count_tokens)


def _job(block: Block, cell: tuple, url: str, count_tokens) -> dict:
    task, length, number, ratio, depth = cell
    example = tasks.example(task, length, number, count_tokens, depth)
    return {**ask.ask(url, example, block.method, ratio, count_tokens), **_row(block, cell)}
