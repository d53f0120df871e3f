"""Tables of the selection bench: means with tasks weighted alike, differences paired by prompt, bootstrap within tasks."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from benchmarks.selection.measure import BEST, PAPER, SAME

_RESAMPLES = 2000
UNCALIBRATED = "best, no heads"
_SHOWN = ("loss", "evidence")


def prompt_of(row: dict) -> tuple:
    """What makes two rows those of one prompt at one budget."""
    return row["task"], row["length"], row["number"], row["keep_ratio"]


def cell(rows: Sequence[dict], method: str, minus: str | None = None, of: str = "loss") -> str:
    """Mean of a field with its 95 % interval; of a method, or of its difference to another on the same prompts."""
    by_task = _by_task(rows, method, minus, of)
    if not by_task:
        return ""
    mean, low, high = interval(list(by_task.values()))
    sign = "+" if minus else ""
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def interval(tasks: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Mean over tasks of each one's mean; 95 % percentile bootstrap, prompts resampled within tasks."""
    random = np.random.default_rng(0)
    drawn = [values[random.integers(0, len(values), (_RESAMPLES, len(values)))].mean(axis=1) for values in tasks]
    means = np.mean(drawn, axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([values.mean() for values in tasks])), float(low), float(high)


def loss_of(rows: Sequence[dict]) -> tuple[float, float, float]:
    """Of one method's rows, with its interval."""
    tasks = sorted({row["task"] for row in rows})
    return interval([np.array([row["loss"] for row in rows if row["task"] == task]) for task in tasks])


def _by_task(rows: Sequence[dict], method: str, minus: str | None, of: str) -> dict[str, np.ndarray]:
    mine = {prompt_of(row): row[of] for row in rows if row["method"] == method and row[of] is not None}
    other = {prompt_of(row): row[of] for row in rows if row["method"] == minus} if minus else dict.fromkeys(mine, 0.0)
    found: dict[str, list[float]] = defaultdict(list)
    for prompt, value in mine.items():
        if prompt in other:
            found[prompt[0]].append(float(value) - float(other[prompt]))
    return {task: np.array(values) for task, values in found.items()}


def headline(rows: Sequence[dict], named: frozenset[str]) -> str:
    """Per length and keep ratio: losses of the presets, best's difference to the paper's rule at the same tokens, evidence."""
    methods = (PAPER, SAME, BEST, UNCALIBRATED)
    columns = ("tokens", "keep ratio", "prompts", *methods, "best - same tokens", "of named", "evidence: same, best")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for length, ratio, mine in _cells(rows):
        evidence = " , ".join(cell(mine, method, of="evidence") for method in (SAME, BEST))
        asked = [row for row in mine if row["task"] in named]
        values = [
            *(str(length), f"{ratio:g}", str(len({prompt_of(row) for row in mine}))),
            *(cell(mine, method) for method in methods),
            *(cell(mine, BEST, SAME), cell(asked, BEST, SAME), evidence),
        ]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def by_task(rows: Sequence[dict], tasks: Sequence[str]) -> str:
    """Best minus the paper's rule at the same tokens, per task, over all lengths; positive is worse."""
    ratios = sorted({row["keep_ratio"] for row in rows if row["method"] == BEST})
    lines = [
        "| task | prompts | dense | " + " | ".join(f"at {ratio:g}" for ratio in ratios) + " |",
        "|---" * (3 + len(ratios)) + "|",
    ]
    for task in tasks:
        mine = [row for row in rows if row["task"] == task]
        dense = [row["nll"] for row in mine if row["method"] == "dense"]
        cells = [cell([row for row in mine if row["keep_ratio"] == ratio], BEST, SAME) for ratio in ratios]
        if dense:
            lines.append(f"| {task} | {len(dense)} | {np.mean(dense):.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(rows: Sequence[dict], pairs: Sequence[tuple[str, str]]) -> str:
    """One rule's loss minus another's on the same prompts: nats per answer token, positive is worse."""
    methods = {method for method, _ in pairs}
    cells = [(length, ratio, mine) for length, ratio, mine in _cells(rows) if any(row["method"] in methods for row in mine)]
    head = " | ".join(f"{length} at {ratio:g}" for length, ratio, _ in cells)
    lines = [f"| rule | minus | {head} |", "|---" * (2 + len(cells)) + "|"]
    for method, minus in pairs:
        values = " | ".join(cell(mine, method, minus) for _, _, mine in cells)
        lines.append(f"| {method} | {minus} | {values} |")
    return "\n".join(lines)


def readers(rows: Sequence[dict]) -> str:
    """Per reader and keep ratio: loss, its difference to the paper's rule with the whole model at as many tokens, evidence."""
    ratios = sorted({row["keep_ratio"] for row in rows if row["method"] == BEST})
    columns = [f"{what} at {ratio:g}" for ratio in ratios for what in ("loss", "minus paper's", "evidence")]
    lines = ["| reader | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] not in ("dense", SAME)):
        cells = []
        for ratio in ratios:
            mine = [row for row in rows if row["keep_ratio"] == ratio]
            cells += [cell(mine, method), cell(mine, method, SAME), cell(mine, method, of="evidence")]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def losses(rows: Sequence[dict]) -> str:
    """Mean loss and evidence of every method, per length and keep ratio, the least loss first."""
    keys = sorted({(row["length"], row["keep_ratio"]) for row in rows if row["method"] != "dense"})
    lines = [
        "| rule | " + " | ".join(f"{length} at {ratio:g}" for length, ratio in keys) + " |",
        "|---" * (1 + len(keys)) + "|",
    ]
    found = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "dense"):
        mine = [[row for row in rows if (row["length"], row["keep_ratio"], row["method"]) == (*key, method)] for key in keys]
        means = [[np.mean(list(map(np.mean, _by_task(some, method, None, of).values()))) for some in mine] for of in _SHOWN]
        cells = [f"{loss:.2f}, {100 * evidence:.0f} %" for loss, evidence in zip(*means, strict=True)]
        found.append((float(np.mean(means[0])), f"| {method} | " + " | ".join(cells) + " |"))
    return "\n".join([*lines, *(line for _, line in sorted(found))])


def _cells(rows: Sequence[dict]) -> list[tuple[int, float, list[dict]]]:
    keys = sorted({(row["length"], row["keep_ratio"]) for row in rows if row["method"] == BEST})
    return [(*key, [row for row in rows if (row["length"], row["keep_ratio"]) == key]) for key in keys]
