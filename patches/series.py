"""A series of patches: a file for each file of `specprefill_sgl/hooks`, whose docstrings say what its seams do and why."""

import ast
import difflib
import hashlib
import inspect
import re
import textwrap
from itertools import groupby
from pathlib import Path

import specprefill_sgl.hooks
from patches import sources
from specprefill_sgl.hooks import WHEN_LOADED, Hook, of_release

_HOOKS = Path(specprefill_sgl.hooks.__file__).parent
_WIDTH = 76


def build(release: str) -> dict[str, str]:
    """The files of a release's series by name: `series` lists the patches in order."""
    hooks = seams(release)
    folder, texts = sources.package_folder(release), {}
    groups = [(None, []), *_by_file(hooks)]
    patches = {}
    for number, (room, group) in enumerate(groups, 1):
        changed = _seam_module() if room is None else _decorated(folder, texts, group)
        subject, body = _about_the_module() if room is None else _about(room, group)
        name = f"{number:04}-{room or 'seams'}.patch"
        before = {path: texts.get(path, None if room is None else (folder / path).read_text()) for path in changed}
        head = f"From {'0' * 40} Mon Sep 17 00:00:00 2001\nFrom: specprefill-sgl <specprefill-sgl@localhost>\n"
        head += f"Subject: [PATCH {number}/{len(groups)}] spec_prefill: {subject}\n\n{body}\n---\n"
        patches[name] = head + "".join(_diff(path, before[path], text) for path, text in sorted(changed.items()))
        texts |= changed
    return {"series": "".join(f"{name}\n" for name in patches)} | patches


def seams(release: str) -> tuple[Hook, ...]:
    """What the sources of a release are to call."""
    return (*of_release(release), *WHEN_LOADED)


def _by_file(hooks: tuple[Hook, ...]) -> list[tuple[str, list[Hook]]]:
    """Hooks by the file of their functions, files in the order in which the table names them first."""
    rooms = list(dict.fromkeys(hook.function.split(":")[0] for hook in hooks))
    ordered = sorted(hooks, key=lambda hook: rooms.index(hook.function.split(":")[0]))
    return [(room, list(group)) for room, group in groupby(ordered, key=lambda hook: hook.function.split(":")[0])]


def _seam_module() -> dict[str, str]:
    return {sources.SEAM_MODULE: Path(__file__).with_name("spec_prefill.py").read_text()}


def _decorated(folder: Path, texts: dict[str, str], hooks: list[Hook]) -> dict[str, str]:
    """The files that a group of hooks changes."""
    changed: dict[str, str] = {}
    for hook in hooks:
        path = sources.file_of(folder, hook.target)
        text = changed.get(path) or texts.get(path) or (folder / path).read_text()
        changed[path] = sources.with_seam(sources.with_import(text), path, hook)
    return changed


def _about_the_module() -> tuple[str, str]:
    documentation = ast.get_docstring(ast.parse(Path(__file__).with_name("spec_prefill.py").read_text()))
    assert documentation is not None
    return _message(documentation, "")


def _about(room: str, hooks: list[Hook]) -> tuple[str, str]:
    module = ast.parse((_HOOKS / f"{room}.py").read_text())
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    seams = []
    for hook in hooks:
        documentation = ast.get_docstring(functions[hook.function.split(":")[1]]) or ""
        words = inspect.cleandoc(re.split(r"\n\n\w+\n-+\n", documentation)[0])
        seams.append(f"{hook.target.removeprefix('sglang.srt.')} -> {hook.function}\n{textwrap.indent(words, '    ')}")
    return _message(ast.get_docstring(module) or "", "\n\n".join(seams))


def _message(documentation: str, seams: str) -> tuple[str, str]:
    """A short subject, the beginning of the first sentence, and a body."""
    subject = re.split(r"[.:;,(](?=\s)", documentation.replace("\n", " "))[0].strip()
    paragraphs = [textwrap.fill(one, _WIDTH) for one in documentation.split("\n\n")]
    return subject, "\n\n".join([*paragraphs, seams]).strip()


def _diff(path: str, before: str | None, after: str) -> str:
    """A patch of one file as git writes it; of a new one if there was none before."""
    name = sources.CHECKOUT + path
    if before is None:
        head = f"new file mode 100644\nindex {'0' * 10}..{_blob(after)}\n"
    else:
        head = f"index {_blob(before)}..{_blob(after)} 100644\n"
    lines = difflib.unified_diff(
        (before or "").splitlines(keepends=True),
        after.splitlines(keepends=True),
        "/dev/null" if before is None else f"a/{name}",
        f"b/{name}",
    )
    return f"diff --git a/{name} b/{name}\n{head}{''.join(lines)}"


def _blob(text: str) -> str:
    """Git's name of a file's content, so that `git am --3way` finds what a patch was made of."""
    content = text.encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()[:10]
