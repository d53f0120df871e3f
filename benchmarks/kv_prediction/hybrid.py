"""`python -m benchmarks.kv_prediction.hybrid PREDICTOR --out FILE.jsonl`: does predicted KV beside kept tokens beat dropping?

No server does this: with Hugging Face alone, the target reads the kept tokens, then sees predicted KV of all others, then reads
the last 32 tokens. Kept tokens are chosen as `best` does, by the draft's calibrated heads, without lookahead.
"""

import argparse
import functools
from array import array
from pathlib import Path

import msgspec
import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer, DynamicCache

from benchmarks import launch
from benchmarks.kv_prediction.second_stage import Stage
from benchmarks.quality import tasks
from benchmarks.quality.results import Results
from specprefill_sgl.calibration import heads_file, reader
from specprefill_sgl.request.prompts import Cast, Prompt
from specprefill_sgl.selection.rule import preset
from specprefill_sgl.stage.selecting import select

TAIL, KEEP_RATIO, LENGTH = 32, 0.2, 1024
TASKS = ("single_needle", "multi_key", "multi_query", "variables", "facts")
METHODS = ("dense", "dropped", "predicted", "hybrid")


class Prefixes:
    """Caches of a prompt's beginning, by method."""

    def __init__(self, stage: Stage):
        self._stage = stage
        self._heads = msgspec.json.decode(launch.HEADS.read_bytes(), type=heads_file.HeadsFile).heads

    def of(self, method: str, ids: list[int]) -> DynamicCache:
        """KV of all but the last tokens, or of those that are kept."""
        before = np.arange(len(ids) - TAIL)
        if method == "dense":
            return self._real(ids, before)
        if method == "predicted":
            return self._predicted(ids, before, DynamicCache())
        kept = np.intersect1d(self._kept(ids), before)
        cache = self._real(ids, kept)
        return cache if method == "dropped" else self._predicted(ids, np.setdiff1d(before, kept), cache)

    def _kept(self, ids: list[int]) -> np.ndarray:
        rule = msgspec.structs.replace(preset("best", self._heads), lookahead=1)
        prompt = Prompt(ids=array("q", ids), keep_ratio=KEEP_RATIO, rule=rule, keep_last=TAIL)
        layers = reader.read(self._stage.draft, ids, rule.window).layers
        by_layer = {layer: [head for own, head in self._heads if own == layer] for layer, _ in self._heads}
        votes = sum(layers[layer].votes(heads, rule.pool_kernel, prompt.counted) for layer, heads in by_layer.items())
        cast = Cast(votes / len(self._heads), rule.window, [], [])
        return select([prompt], [cast])[0].positions

    def _real(self, ids: list[int], positions: np.ndarray) -> DynamicCache:
        tokens, places = torch.tensor([ids])[:, positions], torch.from_numpy(positions)[None]
        return self._stage.target(tokens, position_ids=places, use_cache=True).past_key_values

    def _predicted(self, ids: list[int], positions: np.ndarray, cache: DynamicCache) -> DynamicCache:
        whole = self._stage.predicted(torch.tensor([ids[: len(ids) - TAIL]]))
        for number, layer in enumerate(whole.layers):
            cache.update(layer.keys[:, :, positions], layer.values[:, :, positions], number)
        return cache


@torch.no_grad()
def answer(stage: Stage, cache: DynamicCache, ids: list[int], count: int) -> list[int]:
    """Greedy tokens after the last ones are read, at their own positions."""
    tokens, position, said = ids[-TAIL:], len(ids) - TAIL, []
    for _ in range(count):
        places = torch.arange(position, position + len(tokens))[None]
        out = stage.target(torch.tensor([tokens]), past_key_values=cache, position_ids=places, use_cache=True)
        position, tokens = position + len(tokens), [int(out.logits[0, -1].argmax())]
        said += tokens
    return said


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_prediction.hybrid", description=__doc__)
    parser.add_argument("predictor", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=12, help="of each task")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(launch.TARGET)
    encode = functools.partial(tokenizer.encode, add_special_tokens=False)
    stage, results = Stage(arguments.predictor), Results(arguments.out)
    prefixes = Prefixes(stage)
    cells = [(task, number, method) for task in TASKS for number in range(arguments.examples) for method in METHODS]
    for task, number, method in tqdm(cells):
        row = {"task": task, "length": LENGTH, "number": number, "method": method, "settings": arguments.predictor.name}
        if row in results:
            continue
        example = tasks.example(task, LENGTH, number, lambda piece: len(encode(piece)))
        ids = encode(example.prompt)
        said = answer(stage, prefixes.of(method, ids), ids, len(encode(example.answer)) + 3)
        results.add({**row, "keep_ratio": KEEP_RATIO, "right": tasks.is_right(example, tokenizer.decode(said))})
    for task in TASKS:
        rows = [row for row in results.rows if row["task"] == task and row["settings"] == arguments.predictor.name]
        shares = [np.mean([row["right"] for row in rows if row["method"] == method]) for method in METHODS]
        print(f"{task:15s}" + "".join(f"{method} {share:4.0%}  " for method, share in zip(METHODS, shares, strict=True)))


if __name__ == "__main__":
    main()
