"""`python -m benchmarks.selection`: what each selection rule costs a real model, and the tables of it.

Without a command all three: `prepare` makes the prompts, `run` measures, `report` writes the page. On another machine `run`
needs the prepared file and the model's folder alone, no SGLang.
"""

import argparse
from pathlib import Path

import msgspec
from tqdm import tqdm

from benchmarks.quality.results import Results
from benchmarks.selection.examples import LENGTHS, SPLITS, Example

_HERE = Path(__file__).parent


def main() -> None:
    """Dispatch; rows that are there are not measured again."""
    arguments = _parser().parse_args()
    wanted = ("prepare", "run", "report") if arguments.command == "all" else (arguments.command,)
    if "prepare" in wanted:
        _prepare(arguments)
    if "run" in wanted:
        _run(arguments)
    if "report" in wanted:
        from benchmarks.selection import page

        page.write(arguments.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("all", "prepare", "run", "report"), default="all")
    parser.add_argument("--split", choices=SPLITS, default="held_out")
    parser.add_argument("--counts", type=int, nargs=len(LENGTHS), default=[8, 6, 4, 3], help=f"prompts a task at {LENGTHS}")
    parser.add_argument("--prompts", type=Path, default=Path("selection-prompts.jsonl"), help="the prepared file")
    parser.add_argument("--model", type=Path, help="default: the real model, made on first use")
    parser.add_argument("--shard", default="0/1", help="this process' part of the prompts: 2/8 is the third of eight")
    presets = ("paper", "best", "best, no heads")
    parser.add_argument("--rules", nargs="+", metavar="RULE", help=f"measure these alone, e.g. {presets}; default: all")
    parser.add_argument("--out", type=Path, default=_HERE / "results")
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    from benchmarks.selection.tasks import TASKS, available, example

    tokenizer = AutoTokenizer.from_pretrained(_model(arguments))
    for task in TASKS:
        if (reason := available(task)) is not None:
            print(f"selection: {task} is left out: {reason}")
    wanted = [
        (task, number, length)
        for length, count in zip(LENGTHS, arguments.counts, strict=True)
        for number in range(count)
        for task in TASKS
        if available(task) is None
    ]
    with arguments.prompts.open("wb") as file:
        for task, number, length in tqdm(wanted, desc="prompts"):
            file.write(msgspec.json.encode(example(task, number, length, tokenizer, arguments.split)) + b"\n")


def _run(arguments: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.selection import measure, rules

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(_model(arguments), dtype=torch.bfloat16).eval().to(device)
    measured = rules.rules({layers: rules.heads_of(layers) for layers in (None, *rules.SHALLOW)})
    if arguments.rules:
        measured = {name: measured[name] for name in arguments.rules}
    readers = {name: _reader(name, arguments) for name in {one.reader for one in measured.values()} - {None}}
    shard, shards = map(int, arguments.shard.split("/"))
    lines = arguments.prompts.read_bytes().splitlines()[shard::shards]
    examples = [msgspec.json.decode(line, type=Example) for line in lines]
    results = Results(arguments.out / f"{examples[0].split}{'' if shards == 1 else f'-{shard}'}.jsonl")
    for one in tqdm(examples, desc="prompts"):
        if {"task": one.task, "length": one.length, "number": one.number, "method": "dense", "keep_ratio": 1.0} in results:
            continue
        rows = [*measure.rows_of(model, one, measured, readers=readers)]
        for row in rows:  # all or none: a run that was stopped goes on with the next prompt
            results.add(row)


def _reader(name: str, arguments: argparse.Namespace):
    """A model of another vocabulary, and how it reads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.selection.rules import READERS
    from specprefill_sgl.methods.own_tokens import OwnTokens

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(READERS[name], dtype=torch.float32).eval().to(device)
    return model, OwnTokens(*(AutoTokenizer.from_pretrained(path) for path in (_model(arguments), READERS[name])))


def _model(arguments: argparse.Namespace) -> Path:
    if arguments.model is not None:
        return arguments.model
    from benchmarks.real_model import folder

    return folder()


if __name__ == "__main__":
    main()
