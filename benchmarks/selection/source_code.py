"""Real code: modules of Python's standard library, of which the splits have every other one.

A function defined far above the end is renamed, so that knowing the library does not help. The examples are those of the Python
version that makes them.
"""

import functools
import re
import sysconfig
from pathlib import Path
from typing import NamedTuple

from benchmarks.selection import words
from benchmarks.selection.examples import Piece, Prompt, Setting

_DEFINITION = re.compile(r"^[ ]*(?:async )?def (\w{4,})\(", re.MULTILINE)
_FAR = 0.4  # part of the prompt that lies at least between the definition and the end


class Use(NamedTuple):
    """A function called for the first time: where its definition and its call begin, in characters of the module."""

    module: str
    name: str
    defined: int
    called: int


def code(setting: Setting) -> Prompt:
    """The second word of a function's name, which only its definition far above has; the line that calls it has the first."""
    random = setting.random
    room = setting.room() - 40
    uses = [one for one in _uses(setting.held_out) if 3 * _FAR * room < one.called - one.defined < 4 * room]
    while True:
        use = random.choice(uses)
        new, rest = words.nouns(random, 2, held_out=setting.held_out)
        prompt = _prompt(setting, use, room, new, rest)
        if prompt is not None:
            return prompt


def _prompt(setting: Setting, use: Use, room: int, new: str, rest: str) -> Prompt | None:
    """The code before a call, or nothing if it is too short or the definition not in its first part."""
    begun = use.module.rindex("\n", 0, use.called) + 1
    window = use.module[max(0, begun - 6 * room) : begun]
    start = new + "_"
    window = re.sub(rf"\b{use.name}\b", start + rest, window)
    offsets = setting.offsets(window)
    if len(offsets) < room:
        return None
    body = window[window.index("\n", offsets[-room][0]) + 1 :].rstrip()
    if body.count(start) != 1 or body.index(start) > (1 - _FAR) * len(body):
        return None
    line = use.module[begun : use.called].lstrip()
    definition = next(one for one in body.split("\n") if start in one).strip()
    question = f"Write the next line of the code. It calls the function whose name begins with {new}."
    return Prompt(body, question, [Piece(line + start), Piece(rest, judged=True)], [definition])


@functools.cache
def _uses(held_out: bool) -> tuple[Use, ...]:
    return tuple(use for module in modules(held_out=held_out) for use in _uses_in(module))


def _uses_in(module: str) -> list[Use]:
    """Every function whose name comes back only after its definition, first in a line of code that calls it."""
    found = []
    for match in _DEFINITION.finditer(module):
        name = match[1]
        again = re.compile(rf"\b{name}\b").search(module, match.end())
        if again is None or name.startswith("__"):
            continue
        before = module[module.rindex("\n", 0, again.start()) + 1 : again.start()]
        if module[again.end()] == "(" and not re.search(r"""["'#]|\b(?:def|class) """, before):
            found.append(Use(module, name, match.start(), again.start()))
    return found


@functools.cache
def modules(*, held_out: bool) -> tuple[str, ...]:
    """The text of the standard library's top-level modules in a split."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return tuple(path.read_text(encoding="utf-8", errors="replace") for path in paths[int(held_out) :: 2])
