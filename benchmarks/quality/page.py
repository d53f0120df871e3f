"""Tables and plots: of the committed results between the markers of RESULTS.md, of others beside their rows."""

import json
import re
from pathlib import Path

from benchmarks.quality import continuation, conversation, plots, report
from benchmarks.quality.matrix import KEEP_RATIOS
from benchmarks.quality.results import read

HOME = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"
_SHOWN = [ratio for ratio in KEEP_RATIOS if ratio < 1]


def write(results: Path) -> None:
    """Redraw everything the folder has results for; of the page, text outside the markers stays."""
    tables = {}
    for suite, build in _TABLES.items():
        path = results / f"{suite}.jsonl"
        if path.exists() and (rows := read(path)):
            tables |= build(rows, results)
            tables[f"{suite} provenance"] = _provenance(path)
    if results.resolve() != HOME:
        (results / "TABLES.md").write_text("\n\n".join(f"## {name}\n\n{table}" for name, table in tables.items()) + "\n")
        return
    text = PAGE.read_text()
    for name, table in tables.items():
        text = _filled(text, name, table)
    PAGE.write_text(text)


def _filled(text: str, name: str, table: str) -> str:
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL)


def _matrix(rows: list[dict], results: Path) -> dict[str, str]:
    plots.keep_ratios(rows, results / "keep_ratios.png")
    lengths = sorted({row["length"] for row in rows})
    return {
        "dense": report.dense_table(rows, lengths),
        "summary": report.summary(rows),
        "verdicts": report.verdicts(rows, [0.1, 0.2, 0.3], lengths),
        "methods": report.table(rows, _SHOWN),
    }


def _beside(rows: list[dict], results: Path) -> str:
    path = results / "matrix.jsonl"
    return report.beside_table(rows, read(path) if path.exists() else [])


def _dense_2048(rows: list[dict], _results: Path) -> dict[str, str]:
    return {"dense at 2048": report.dense_table(rows, [2048])}


def _depth(rows: list[dict], results: Path) -> dict[str, str]:
    plots.depths(rows, results / "depths.png")
    return {"depths": report.depth_table(rows)}


def _ablation(rows: list[dict], _results: Path) -> dict[str, str]:
    return {"ablation": report.ablation_table(rows)}


def _continuation(rows: list[dict], _results: Path) -> dict[str, str]:
    return {"perplexity": continuation.table(rows)}


def _provenance(path: Path) -> str:
    found = json.loads(path.read_text().splitlines()[0])["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"`{found['command']}`; commit {found['commit'][:7]}; {versions}; {found['hardware']}; {found['date']}"


def _conversation(rows: list[dict], _results: Path) -> dict[str, str]:
    return {"conversation": conversation.table(rows)}


_TABLES = {
    "matrix": _matrix,
    "readers": lambda rows, results: {"readers": _beside(rows, results)},
    "revival": lambda rows, results: {"revival": _beside(rows, results)},
    "dense_2048": _dense_2048,
    "depth": _depth,
    "ablation": _ablation,
    "continuation": _continuation,
    "conversation": _conversation,
}
