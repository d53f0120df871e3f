"""`python -m benchmarks.quality`: what SpecPrefill does to answers, of the shipped pair or of models you serve."""

import argparse
import functools
from pathlib import Path

from benchmarks import launch
from benchmarks.quality import continuation, conversation, harness, matrix, page, tasks
from benchmarks.quality.matrix import ABLATIONS, KEEP_RATIOS, LENGTHS, METHODS, PREDICTED
from benchmarks.quality.results import Results
from benchmarks.quality.server import serve

_HERE = Path(__file__).parent
SUITES = ("matrix", "depth", "ablation", "continuation", "conversation")


def main() -> None:
    """Runs suites on the pair, or with `--base-url` an lm-eval harness on a server that runs."""
    arguments = _parser().parse_args()
    if arguments.base_url:
        harness.run(arguments)
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.target)
    count = functools.cache(lambda piece: len(tokenizer.encode(piece, add_special_tokens=False)))
    names = tuple(arguments.tasks.split(",")) if arguments.tasks else tuple(tasks.TASKS)
    for suite in arguments.suites:
        results = Results(arguments.out / f"{suite}.jsonl")
        folder = arguments.out / "servers" / suite
        if suite == "continuation":
            with serve(arguments.target, arguments.draft, folder, "--disable-radix-cache") as server:
                continuation.run(server, tokenizer, 2048, arguments.examples, results)
        elif suite == "conversation":
            with serve(arguments.target, arguments.draft, folder) as server:
                conversation.run(server, tokenizer, 8000, 0.1, arguments.examples, results)
        else:
            matrix.run(_blocks(suite, arguments, names), arguments.target, arguments.draft, results, folder, count)
    page.write(arguments.out)


def _blocks(suite: str, arguments: argparse.Namespace, names: tuple[str, ...]) -> list[matrix.Block]:
    if suite == "matrix":
        longest = arguments.examples_of_longest

        def examples(length: int) -> int:
            return longest if longest and length >= 8192 else arguments.examples

        return matrix.main_blocks(arguments.methods, names, arguments.lengths, arguments.keep_ratios, examples)
    if suite == "depth":
        return matrix.depth_blocks(arguments.lengths, max(1, arguments.examples // 10))
    return matrix.ablation_blocks(names, 2048, arguments.examples)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--tasks", help=f"of the pair: {','.join(tasks.TASKS)}; with --base-url: longbench,ruler")
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, *PREDICTED), default=list(METHODS))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS), help="prompt lengths in tokens")
    parser.add_argument("--keep-ratios", nargs="+", type=float, default=list(KEEP_RATIOS))
    parser.add_argument("--examples", type=int, default=20, help="prompts per task and length")
    parser.add_argument("--examples-of-longest", type=int, help="instead, for prompts of 8,192 tokens and more")
    parser.add_argument("--target", type=Path, default=launch.TARGET)
    parser.add_argument("--draft", type=Path, default=launch.DRAFT)
    parser.add_argument("--out", type=Path, default=_HERE / "results", help="JSONL and plots; rows there are not run again")
    parser.epilog = f"Ablations: {', '.join(ABLATIONS)}."
    harness.add_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
