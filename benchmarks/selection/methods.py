"""What the methods cost SmolLM2's answers: `python -m benchmarks.selection.methods --prompts FILE --predictor DIR`.

`draft` (the model itself), `early-layers`, `lazy`, `kv-prediction`, and the hybrid that no server has: kept tokens are real,
the others predicted. Of the prompts that `python -m benchmarks.selection prepare` makes.
"""

import argparse
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from benchmarks import real_model
from benchmarks.quality.results import Results, read
from benchmarks.selection import report, sparse, upper_layers
from benchmarks.selection.examples import Example
from benchmarks.selection.measure import KEEP_RATIOS
from benchmarks.selection.reading import Reading, as_ids, read_example
from benchmarks.selection.rules import heads_of
from specprefill_sgl.calibration.casting import cast, prompt_of
from specprefill_sgl.methods.kv_prediction import predictor_file
from specprefill_sgl.methods.kv_prediction.predictor import Predictor
from specprefill_sgl.request.prompts import Cast, Prompt
from specprefill_sgl.selection.first_layers import VOTING_PART, last_part, of_last_tokens
from specprefill_sgl.selection.rule import Rule, preset
from specprefill_sgl.stage.selecting import select

LAYERS = (8, 15)
OUT = Path(__file__).parent / "results" / "methods-held_out.jsonl"
DRAFT, HYBRID, KV_PREDICTION = "draft, the model itself", "hybrid 15", "kv-prediction 15"
SINKS = preset("best", None).ignore_first  # lazy keeps them
COST = {  # in dense prefills, of a keep ratio, by the first word; k of 30 layers
    "early-layers": lambda k, p: k + p,
    "lazy": lambda k, p: k + (1 - k) * p,
    "hybrid": lambda k, p: k + (1 - k) * p,
    "kv-prediction": lambda k, p: k,
}
Found = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    """Rows that are there are not measured again; then the table of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection.methods", description=__doc__)
    parser.add_argument("--prompts", type=Path, help="without them, only the table of what was measured")
    parser.add_argument("--predictor", type=Path, help="of the model's first 15 layers; without it, no prediction")
    parser.add_argument("--methods", nargs="+", help="measure these alone; default: all")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.prompts is not None:
        _run(arguments)
    print(table(read(arguments.out)))


def _run(arguments: argparse.Namespace) -> None:
    model = AutoModelForCausalLM.from_pretrained(real_model.folder(), dtype=torch.bfloat16).eval()
    predictor = None
    if arguments.predictor is not None:
        about = predictor_file.about(str(arguments.predictor))
        predictor = Predictor(about, predictor_file.load_weights(str(arguments.predictor)), 0, 1, model.device)
    results = Results(arguments.out)
    for line in tqdm(arguments.prompts.read_bytes().splitlines(), desc="prompts"):
        one = msgspec.json.decode(line, type=Example)
        if {"task": one.task, "length": one.length, "number": one.number, "method": "dense", "keep_ratio": 1.0} in results:
            continue
        for row in [*rows_of(model, one, predictor, arguments.methods)]:  # all or none
            results.add(row)


def rows_of(
    model: Any, example: Example, predictor: Predictor | None, methods: Collection[str] | None = None
) -> Iterator[dict]:
    """Of one prompt: a dense row, then one per method and keep ratio; fields as those of `measure.rows_of`."""
    reading, mask = read_example(model, example), torch.tensor(example.judged)
    dense = float(reading.nll[mask].mean())
    about = {name: getattr(example, name) for name in ("task", "length", "number", "split")}
    yield {**about, "method": "dense", "keep_ratio": 1.0, "nll": dense, "right": bool(reading.right[mask].all())}
    for name, ratio, kept, (nll, right) in _answers(model, reading, predictor, methods or (*_choices(), HYBRID, KV_PREDICTION)):
        cost = {"loss": float(nll[mask].mean()) - dense, "right": bool(right[mask].all())}
        yield {**about, "method": name, "keep_ratio": ratio, "kept": len(kept), **cost}


def _answers(
    model: Any, reading: Reading, predictor: Predictor | None, wanted: Collection[str]
) -> Iterator[tuple[str, float, np.ndarray, Found]]:
    example, choices = reading.example, _choices()
    below = upper_layers.entered(model, example, LAYERS)
    tail = np.arange(len(example.ids) - upper_layers.TAIL, len(example.ids))

    def upper(layers: int, kept: np.ndarray, predictor: Predictor | None = None) -> Found:
        return upper_layers.answer(model, example, below[layers], kept, predictor)

    for ratio in KEEP_RATIOS:
        chosen = {name: (layers, one(reading, ratio)) for name, (layers, one) in choices.items() if name in wanted}
        dropping = {name: kept for name, (_, kept) in chosen.items() if not name.startswith("lazy")}
        for (name, kept), found in zip(dropping.items(), sparse.answers(model, example, [*dropping.values()]), strict=True):
            yield name, ratio, kept, found
        for name, (layers, kept) in chosen.items():
            if name.startswith("lazy"):
                yield name, ratio, kept, upper(layers, kept)
        if predictor is not None and HYBRID in wanted:
            layers, choose = choices["lazy 15"]
            kept = np.union1d(choose(reading, ratio), tail)
            yield HYBRID, ratio, kept, upper(layers, kept, predictor)
    if predictor is not None and KV_PREDICTION in wanted:
        yield KV_PREDICTION, 1.0, tail, upper(15, tail, predictor)


def _choices() -> dict[str, tuple[int, Callable[[Reading, float], np.ndarray]]]:
    """Name -> layers that are read whole, and what is kept."""
    found: dict[str, tuple[int, Callable[[Reading, float], np.ndarray]]] = {DRAFT: (30, _by_heads(None))}
    for layers in LAYERS:
        for method, sinks in (("early-layers", 0), ("lazy", SINKS)):
            found[f"{method} {layers}"] = layers, _by_heads(layers, sinks)
            found[f"{method} {layers}, no heads"] = layers, _by_last_quarter(layers, sinks)
        found[f"lazy {layers}, sink dropped"] = layers, _by_heads(layers)
        found[f"lazy {layers}, LazyLLM's score"] = layers, _by_last_token(layers)
    return found


def _by_heads(layers: int | None, sinks: int = 0) -> Callable[[Reading, float], np.ndarray]:
    rule = preset("best", heads_of(layers))
    if layers is not None:
        rule = of_last_tokens(rule)
    return lambda reading, ratio: _chosen(prompt := _prompt(reading, rule, ratio, sinks), cast(reading.seen, prompt))


def _by_last_quarter(layers: int, sinks: int) -> Callable[[Reading, float], np.ndarray]:
    rule, voting = of_last_tokens(preset("best", None)), last_part(range(layers), VOTING_PART)
    return lambda reading, ratio: _chosen(prompt := _prompt(reading, rule, ratio, sinks), cast(reading.seen, prompt, voting))


def _by_last_token(layers: int) -> Callable[[Reading, float], np.ndarray]:
    """LazyLLM's: attention of the last token, mean over the heads of the last layer that reads everything."""
    rule = preset("paper", None, "lazy")

    def choose(reading: Reading, ratio: float) -> np.ndarray:
        layer, n = reading.seen.window[layers - 1], len(reading.example.ids)
        heads = layer.queries.shape[1]
        votes = layer._replace(queries=layer.queries[-1:]).votes(range(heads)) / heads
        return _chosen(_prompt(reading, rule, ratio), Cast(votes, 1, [reading.example.ids[-1]], [n - 1]))

    return choose


def _prompt(reading: Reading, rule: Rule, ratio: float, sinks: int = 0) -> Prompt:
    return msgspec.structs.replace(prompt_of(as_ids(reading.example.ids), rule, ratio), keep_first=sinks)


def _chosen(prompt: Prompt, votes: Cast) -> np.ndarray:
    return np.sort(select([prompt], [votes])[0].positions)


def table(rows: list[dict]) -> str:
    """Markdown: nats an answer token above dense [95 % interval], answers that are right, per keep ratio; the bound of TTFT."""
    lines = ["| method | " + " | ".join(f"at {ratio:g} | right | TTFT at most" for ratio in KEEP_RATIOS) + " |"]
    lines.append("|---" * (1 + 3 * len(KEEP_RATIOS)) + "|")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for ratio in KEEP_RATIOS:
            mine = [row for row in rows if row["method"] == method and row["keep_ratio"] in (ratio, 1.0)]
            loss = "0" if method == "dense" else report.cell(mine, method)
            cells += [loss, f"{100 * np.mean([row['right'] for row in mine]):.0f} %", bound(method, ratio)]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bound(method: str, ratio: float) -> str:
    """Dense over what a method computes; the model as its own draft gains nothing."""
    name, _, layers = method.partition(",")[0].rpartition(" ")
    return f"{1 / COST[name](int(layers) / 30, ratio):.2f}x" if name in COST else ""


if __name__ == "__main__":
    main()
