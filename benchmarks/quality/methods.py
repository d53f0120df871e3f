"""Answers of every method on the same prompts, from committed rows: `python -m benchmarks.quality.methods` prints the table."""

from collections.abc import Iterator

import numpy as np

from benchmarks.quality.page import HOME
from benchmarks.quality.results import read

LENGTH, KEEP_RATIO = 1024, 0.2
DENSE = "dense"
METHODS = {
    DENSE: "dense",
    "specprefill": "`draft`, the paper's rule",
    "best": "`draft`, `best`",
    "early_layers_2": "`early-layers`, 2 of 4",
    "lazy_2": "`lazy` after layer 2, `best`",
    "lazy_2_paper": "`lazy` after layer 2, LazyLLM's score",
    "kv_prediction_first_2": "`kv-prediction`, own 2 of 4 layers",
    "kv_prediction_draft": "`kv-prediction`, the draft, second stage",
}
_FILES = ("matrix", "readers", "lazy", "kv_prediction")


def main() -> None:
    """Markdown: parts of the answer that are right, percent, of the prompts that all methods were asked."""
    cells = recalls()
    tasks = sorted({task for _, task in cells})
    print("| method | " + " | ".join(tasks) + " | mean |", "|---" * (len(tasks) + 2) + "|", sep="\n")
    for method, name in METHODS.items():
        means = [100 * float(np.mean(cells[method, task])) for task in tasks]
        print(f"| {name} | " + " | ".join(f"{mean:.0f}" for mean in [*means, float(np.mean(means))]) + " |")


def recalls() -> dict[tuple[str, str], list[float]]:
    """Method and task -> recall of each prompt; tasks and prompts that all have."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in _rows():
        found.setdefault((row["method"], row["task"]), {})[row["number"]] = row["recall"]
    tasks = {task for _, task in found}
    common = {task: set.intersection(*(set(found.get((method, task), {})) for method in METHODS)) for task in tasks}
    return {
        (method, task): [found[method, task][number] for number in sorted(numbers)]
        for task, numbers in common.items()
        if numbers
        for method in METHODS
    }


def _rows() -> Iterator[dict]:
    for name in _FILES:
        for row in read(HOME / f"{name}.jsonl"):
            if row["length"] == LENGTH and row["keep_ratio"] == (1.0 if row["method"] == DENSE else KEEP_RATIO):
                yield row


if __name__ == "__main__":
    main()
