"""Imports go downward only: docs/architecture.md lists the rooms, the highest first."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PACKAGE = _ROOT / "specprefill_sgl"
_ENTRIES = {"__init__", "__main__", "plugin"}  # SGLang's and Python's ways in


def _rooms() -> list[str]:
    page = (_ROOT / "docs" / "architecture.md").read_text()
    table = page.split("## Rooms")[1].split("##")[0]
    return [name.removesuffix(".py") for name in re.findall(r"^\| `(\w+(?:\.py)?)/?`", table, re.MULTILINE)]


def _room_of(path: Path) -> str:
    return path.relative_to(_PACKAGE).parts[0].removesuffix(".py")


def _imported(path: Path) -> Iterator[str]:
    """Rooms that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == _PACKAGE.name:
            inner = node.module.split(".")[1:]
            yield from [inner[0]] if inner else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith(f"{_PACKAGE.name}."))


def test_the_page_lists_every_room():
    there = {_room_of(path) for path in _PACKAGE.rglob("*.py")} - _ENTRIES
    assert set(_rooms()) == there


@pytest.mark.parametrize("room", _rooms())
def test_a_room_imports_only_rooms_below_it(room):
    rooms = _rooms()
    files = [path for path in _PACKAGE.rglob("*.py") if _room_of(path) == room]
    assert files
    for path in files:
        above = {other for other in _imported(path) if other in rooms[: rooms.index(room)]}
        assert not above, (str(path.relative_to(_ROOT)), above)
