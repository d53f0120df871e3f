"""`python -m benchmarks.kv_prediction.text FILE.jsonl`: what a predictor is fitted to, as text.

The shipped pair's is its own mixture, since it knows no other vocabulary; the real model's, prompts of the selection bench that
no result is measured on.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks import launch, real_model
from benchmarks.pair.batches import Sequences
from benchmarks.selection import tasks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_prediction.text", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--real-model", action="store_true", help="for SmolLM2 instead of the shipped pair")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--length", type=int, default=1024, help="of a sequence, in tokens")
    parser.add_argument("--seed", type=int, default=18, help="of the mixture")
    arguments = parser.parse_args()
    texts = _prompts(arguments) if arguments.real_model else _mixture(arguments)
    with arguments.file.open("w", encoding="utf-8") as file:
        for text in tqdm(texts, total=arguments.count, desc="texts"):
            file.write(json.dumps({"text": text}) + "\n")


def _mixture(arguments: argparse.Namespace) -> Iterator[str]:
    tokenizer = AutoTokenizer.from_pretrained(launch.TARGET)
    sequences = Sequences(lambda piece: tokenizer.encode(piece, add_special_tokens=False))
    for number in range(arguments.count):
        ids, _ = sequences.batch(Random(f"{arguments.seed}/{number}"), 1, arguments.length)
        yield tokenizer.decode(ids[0])


def _prompts(arguments: argparse.Namespace) -> Iterator[str]:
    tokenizer = AutoTokenizer.from_pretrained(real_model.folder())
    names = [task for task in tasks.TASKS if tasks.available(task) is None]
    for number in range(arguments.count):
        task = names[number % len(names)]
        one = tasks.example(task, number // len(names), arguments.length, tokenizer, "calibration")
        yield tokenizer.decode(one.ids + one.answer)


if __name__ == "__main__":
    main()
