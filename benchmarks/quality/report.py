"""From rows to a Markdown table and plots: accuracy with 95 % bootstrap intervals, paired with dense on the same prompts."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from scipy.stats import bootstrap

from benchmarks.quality import ask, tasks
from benchmarks.quality.matrix import BEST, METHODS, SPECPREFILL

HOLDS = 0.95  # of dense accuracy


def interval(values: Iterable[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean; a constant sample has no width."""
    data = np.asarray(list(values), dtype=float)
    if len(data) < 2 or np.all(data == data[0]):
        return float(data.mean()), float(data.mean())
    found = bootstrap((data,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def by_cell(rows: list[dict], names: tuple[str, ...]) -> dict[tuple, list[dict]]:
    """Rows grouped by the given fields."""
    cells: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        cells[tuple(row[name] for name in names)].append(row)
    return cells


def differences(rows: list[dict], dense: list[dict]) -> list[float]:
    """Right minus dense right, per prompt."""
    reference = {(row["task"], row["length"], row["number"], row.get("depth")): row["right"] for row in dense}
    return [row["right"] - reference[row["task"], row["length"], row["number"], row.get("depth")] for row in rows]


def table(rows: list[dict], keep_ratios: list[float], methods: tuple[str, ...] = METHODS) -> str:
    """One line per task, method and length range; cells are accuracy and the paired difference to dense with its interval."""
    lines = [
        "| group | task | method | dense | " + " | ".join(f"keep {ratio:g}" for ratio in keep_ratios) + " |",
        "|---|---|---|---" + "|---" * len(keep_ratios) + "|",
    ]
    for task in [*tasks.TASKS, tasks.CONTINUATION]:
        mine = [row for row in rows if row["task"] == task]
        dense = [row for row in mine if row["method"] == ask.DENSE]
        if not dense:
            continue
        group = tasks.TASKS[task].group if task in tasks.TASKS else "language"
        for method in methods[1:]:
            cells = [
                _cell([row for row in mine if row["method"] == method and row["keep_ratio"] == ratio], dense)
                for ratio in keep_ratios
            ]
            if any(cells):
                lines.append(f"| {group} | {task} | {method} | {mean(dense):.1%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(rows: list[dict]) -> str:
    """Accuracy over all lengths, SpecPrefill beside its controls; bold where at least 95 % of dense is kept."""
    columns = [(ask.DENSE, 1.0), *((SPECPREFILL, ratio) for ratio in (0.1, 0.2, 0.3)), *((name, 0.2) for name in METHODS[2:])]
    columns = [column for column in columns if any((row["method"], row["keep_ratio"]) == column for row in rows)]
    heads = ["dense"] + [f"{name.replace('_', ' ')} {ratio:g}" for name, ratio in columns[1:]]
    lines = ["| task | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for task in tasks.TASKS:
        cells = by_cell([row for row in rows if row["task"] == task], ("method", "keep_ratio"))
        if dense := cells.get((ask.DENSE, 1.0)):
            shown = [f"{mean(dense):.0%}"]
            for column in columns[1:]:
                found = cells.get(column, [])
                held = found and 0 < HOLDS * mean(dense) <= mean(found)
                shown.append((f"**{mean(found):.0%}**" if held else f"{mean(found):.0%}") if found else "")
            lines.append(f"| {task} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def beside_table(rows: list[dict], others: list[dict]) -> str:
    """Methods beside dense, the paper's rule and best, of each task on the prompts that all were asked."""
    every = [*rows, *(row for row in others if row["method"] in (ask.DENSE, SPECPREFILL, BEST))]
    known = {(row["method"], row["keep_ratio"]) for row in every}
    names = dict.fromkeys([SPECPREFILL, BEST, *(name for name in METHODS if any(row["method"] == name for row in rows))])
    columns = [(ask.DENSE, 1.0), *((name, ratio) for name in names for ratio in (0.1, 0.2) if (name, ratio) in known)]
    heads = ["dense"] + [f"{name.replace('_', ' ')} {ratio:g}" for name, ratio in columns[1:]]
    lines = ["| task | prompts | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for task in tasks.TASKS:
        mine = [row for row in rows if row["task"] == task]
        asked = [{_prompt(row) for row in some} for some in by_cell(mine, ("method",)).values()]
        shared = [row for row in every if asked and _prompt(row) in set.intersection(*asked)]
        cells = by_cell(shared, ("method", "keep_ratio"))
        if found := [cells.get(column, []) for column in columns if cells]:
            shown = [f"{mean(cell):.0%}" if cell else "" for cell in found]
            lines.append(f"| {task} | {max(map(len, found))} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _prompt(row: dict) -> tuple:
    return row["task"], row["length"], row["number"]


def verdicts(rows: list[dict], keep_ratios: list[float], lengths: list[int]) -> str:
    """Where SpecPrefill keeps at least 95 % of dense accuracy: one line per task, one cell per keep ratio.

    Lengths at which dense gets nothing right are left out: there is nothing to keep.
    """
    lines = [
        "| task | dense | " + " | ".join(f"keep {ratio:g}: lengths that hold / lose" for ratio in keep_ratios) + " |",
        "|---|---" + "|---" * len(keep_ratios) + "|",
    ]
    for task in tasks.TASKS:
        dense = [row for row in rows if row["task"] == task and row["method"] == ask.DENSE]
        if not dense:
            continue
        cells = []
        for ratio in keep_ratios:
            hold, lose = [], []
            for length in lengths:
                sparse = [
                    row
                    for row in rows
                    if (row["task"], row["method"], row["keep_ratio"], row["length"]) == (task, SPECPREFILL, ratio, length)
                ]
                reference = [row for row in dense if row["length"] == length]
                if sparse and any(row["right"] for row in reference):
                    (hold if mean(sparse) >= HOLDS * mean(reference) else lose).append(str(length))
            cells.append(f"{', '.join(hold) or 'none'} / {', '.join(lose) or 'none'}")
        lines.append(f"| {task} | {mean(dense):.1%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def dense_table(rows: list[dict], lengths: list[int]) -> str:
    """What the target does with the whole prompt, per length."""
    lines = ["| group | task | " + " | ".join(str(length) for length in lengths) + " |", "|---" * (2 + len(lengths)) + "|"]
    for name, task in tasks.TASKS.items():
        mine = [row for row in rows if row["task"] == name and row["method"] == ask.DENSE]
        cells = [_accuracy([row for row in mine if row["length"] == length]) for length in lengths]
        if mine:
            lines.append(f"| {task.group} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def depth_table(rows: list[dict]) -> str:
    """Accuracy over all depths, and the worst depth, per length and keep ratio (1 is dense)."""
    cells = by_cell(rows, ("length", "keep_ratio"))
    lines = ["| length | keep ratio | prompts | all depths | worst depth |", "|---|---|---|---|---|"]
    for (length, ratio), mine in sorted(cells.items()):
        depths = {depth: mean(some) for (depth,), some in by_cell(mine, ("depth",)).items()}
        worst = min(depths, key=lambda depth: depths[depth])
        lines.append(f"| {length} | {ratio:g} | {len(mine)} | {_accuracy(mine)} | {depths[worst]:.0%} at {worst:.2f} |")
    return "\n".join(lines)


def ablation_table(rows: list[dict]) -> str:
    """Accuracy per changed setting; the defaults are lookahead 8, pool 13, chunk 32, max, original."""
    names = [task for task in tasks.TASKS if any(row["task"] == task for row in rows)]
    ratios = sorted({row["keep_ratio"] for row in rows})
    columns = [(task, ratio) for task in names for ratio in ratios]
    lines = [
        "| setting | " + " | ".join(f"{task} at {ratio:g}" for task, ratio in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    settings = list(dict.fromkeys(next(iter(row["settings"].items())) for row in rows))
    for name, value in settings:
        cells = by_cell([row for row in rows if row["settings"] == {name: value}], ("task", "keep_ratio"))
        lines.append(f"| {name} {value} | " + " | ".join(_accuracy(cells.get(column, [])) for column in columns) + " |")
    return "\n".join(lines)


def _cell(rows: list[dict], dense: list[dict]) -> str:
    if not rows:
        return ""
    low, high = interval(differences(rows, dense))
    return f"{mean(rows):.1%} ({_mean_difference(rows, dense):+.1%} [{low:+.1%}, {high:+.1%}])"


def _mean_difference(rows: list[dict], dense: list[dict]) -> float:
    return float(np.mean(differences(rows, dense)))


def _accuracy(rows: list[dict]) -> str:
    if not rows:
        return ""
    low, high = interval(row["right"] for row in rows)
    return f"{mean(rows):.1%} [{low:.0%}, {high:.0%}]"


def mean(rows: list[dict]) -> float:
    return float(np.mean([_score(row) for row in rows]))


def _score(row: dict) -> float:
    task = tasks.TASKS.get(row["task"])
    return row["recall"] if task is not None and task.by_parts else row["right"]
