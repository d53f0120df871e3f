"""The page of results: `results/*.jsonl` as tables."""

from pathlib import Path

from benchmarks.quality.results import read
from benchmarks.selection import adaptive, report, tasks
from benchmarks.selection.measure import BEST, PAPER, SAME
from benchmarks.selection.rules import SHALLOW

_PARTS = ("headline", "by_task", "ablations", "shallow", "adaptive")
_TEXT = """# Selection rules on a real chat model

`python -m benchmarks.selection` with SmolLM2-135M-Instruct (bf16) as target and draft. Held-out prompts: other random numbers,
words, prose, paragraphs and modules than any choice was made on. Loss is what an answer token costs more than dense, nats,
judged tokens only; tasks count alike; brackets are 95 % bootstrap intervals, differences are paired by prompt. Evidence is the
share of spans a reader needs that are kept whole. *{same}* is the paper's ranking cut to exactly as many tokens as `best`
keeps. Rows with provenance: `results/`.

## Presets

{headline}

*of named*: tasks whose question names what it wants ({named}).

## Per task

`best` minus the paper's rule at the same tokens, all lengths. Positive is worse.

{by_task}

## What each part of best is worth

Differences of losses; positive is worse than what is subtracted. Other parts: the tables of how it was chosen, below.

{ablations}

## Weaker drafts

The first layers of the model as draft, with the whole model's lookahead, scored offline.

{shallow}

## Other readers

{readers_of} prompts of 1,024 tokens. *early-layers k*: the first k of the model's 30 layers, the last 48 tokens vote, with
heads calibrated among them or in the last quarter of them. *own tokens*: the shipped pair's draft (0.9M parameters) and target
(7.1M), of a vocabulary of 2,048, read the text in their own tokenizer; they were trained on other forms of task. *minus
paper's*: the paper's rule with the whole model, cut to as many tokens as `best` keeps.

{readers}

## How best was chosen

Nats above dense and evidence kept whole, mean over tasks, the least loss first. *Tail 48 in half*: 48 tokens at the end are
kept whatever their score, in at most half of the budget. `best` is the window with lookahead 8, and its tail may take an
eighth. The answers are teacher-forced and name what was asked, so this says too little of what a dropped question costs: that
is why there is a tail at all. The shipped pair, which writes its answers itself, needs the lookahead
(`benchmarks/quality/RESULTS.md`).

Prompts of the calibration split (70 of 1k, 48 of 2k), by which it was chosen:

{chosen_by}

Held-out prompts (112 of 1k), for all variants:

{variants}

## A keep ratio that knows when to stop

{adaptive}
"""


def write(folder: Path) -> None:
    """`RESULTS.md` beside the folder of rows."""
    rows = [row for path in sorted(folder.glob("held_out*.jsonl")) for row in read(path)]
    readers = read(folder / "readers-held_out.jsonl")
    held_out = [row for row in read(folder / "choice-held_out.jsonl") if row["length"] == 1024]
    page = _TEXT.format(
        same=SAME,
        readers=report.readers(readers),
        readers_of=len({(row["task"], row["number"]) for row in readers}),
        named=", ".join(sorted(tasks.NAMED)),
        chosen_by=report.losses(read(folder / "choice-calibration.jsonl")),
        variants=report.losses(held_out),
        **(_measured(folder, rows) if rows else dict.fromkeys(_PARTS, "Not measured yet with the rule as it ships.")),
    )
    (folder.parent / "RESULTS.md").write_text(page, encoding="utf-8")


def _measured(folder: Path, rows: list[dict]) -> dict[str, str]:
    tried = [row for path in sorted(folder.glob("calibration*.jsonl")) for row in read(path)]
    layers = [f"{rule}, {count} layers" for count in SHALLOW for rule in (PAPER, BEST)]
    others = {"dense", PAPER, SAME, BEST, *layers}
    parts = [name for name in dict.fromkeys(row["method"] for row in rows) if name not in others]
    tables = (
        report.headline(rows, tasks.NAMED),
        report.by_task(rows, tasks.TASKS),
        report.differences(rows, [*((name, BEST) for name in parts), (report.UNCALIBRATED, SAME)]),
        report.differences(rows, [(name, name.replace(BEST, PAPER) if name.startswith(BEST) else PAPER) for name in layers]),
        adaptive.study(tried, rows),
    )
    return dict(zip(_PARTS, tables, strict=True))
