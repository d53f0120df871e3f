"""`python -m benchmarks.kv_prediction.text FILE.jsonl`: the pair's own mixture as text, since it knows no other vocabulary."""

import argparse
import json
from pathlib import Path
from random import Random

from benchmarks import launch
from benchmarks.pair.batches import Sequences


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_prediction.text", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--length", type=int, default=1024, help="of a sequence, in tokens")
    parser.add_argument("--seed", type=int, default=18)
    arguments = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(launch.TARGET)
    sequences = Sequences(lambda piece: tokenizer.encode(piece, add_special_tokens=False))
    with arguments.file.open("w", encoding="utf-8") as file:
        for number in range(arguments.count):
            ids, _ = sequences.batch(Random(f"{arguments.seed}/{number}"), 1, arguments.length)
            file.write(json.dumps({"text": tokenizer.decode(ids[0])}) + "\n")


if __name__ == "__main__":
    main()
