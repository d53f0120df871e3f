"""Draws FIRST_LAYERS.md's picture from its own tables: `python -m benchmarks.selection.first_layers`."""

import re
from pathlib import Path

_PAGE = Path(__file__).with_name("FIRST_LAYERS.md")
_PICTURE = Path(__file__).parent / "results" / "first_layers.svg"
_COLUMNS = {
    "heads, 0.2": (6, "C1", "-"),
    "heads, 0.1": (4, "C0", "-"),
    "last quarter, 0.2": (7, "C1", ":"),
    "last quarter, 0.1": (5, "C0", ":"),
}


def main() -> None:
    """Share of the evidence that the first k layers find, a panel for each length of prompts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = _tables(_PAGE.read_text(encoding="utf-8"))
    with pyplot.rc_context(
        {"svg.hashsalt": "first layers", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure, axes = pyplot.subplots(1, len(tables), figsize=(9, 3), sharey=True)
        for axis, (title, rows) in zip(axes, tables.items(), strict=True):
            for name, (column, colour, line) in _COLUMNS.items():
                # a cell is "overlap, found"
                found = [float(row[column].split(",")[1]) for row in rows]
                axis.plot([int(row[1]) for row in rows], found, color=colour, ls=line, marker="o", ms=2.5, label=name)
            axis.set(title=title, xlabel="first layers that read, of 30", ylim=(0, 1))
        axes[0].set_ylabel("evidence found")
        axes[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
        figure.tight_layout()
        figure.savefig(_PICTURE, metadata={"Date": None}, facecolor="white")


def _tables(page: str) -> dict[str, list[list[str]]]:
    """Heading -> cells of its table's rows; those of a table begin with a number of layers."""
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    found = {
        section.partition("\n")[0]: [
            [cell.strip() for cell in line.split("|")] for line in section.splitlines() if re.match(r"\| \d", line)
        ]
        for section in sections
    }
    return {title: rows for title, rows in found.items() if rows}


if __name__ == "__main__":
    main()
