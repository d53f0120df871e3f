"""`python -m benchmarks.pair`: trains the tokenizer, the draft and the target, and writes them where they are shipped."""

import argparse
from pathlib import Path

import torch

from benchmarks.pair import export, vocabulary
from benchmarks.pair.batches import Sequences
from benchmarks.pair.plans import RUNS
from benchmarks.pair.shapes import SHAPES
from benchmarks.pair.train import train

_HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pair", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["draft", "target"])
    parser.add_argument("--work", type=Path, default=Path(".pair"), help="checkpoints and logs; training goes on from there")
    parser.add_argument("--out", type=Path, default=_HERE, help="where the trained models are written")
    arguments = parser.parse_args()
    from transformers import AutoTokenizer

    if not (arguments.work / "tokenizer").exists():
        vocabulary.train(arguments.work / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(arguments.work / "tokenizer")
    sequences = Sequences(lambda piece: tokenizer.encode(piece, add_special_tokens=False))
    for name in arguments.models:
        model = train(SHAPES[name], RUNS[name], sequences, arguments.work / name)
        export.write(model.to(torch.bfloat16), tokenizer, arguments.work / name, arguments.out / name)


if __name__ == "__main__":
    main()
