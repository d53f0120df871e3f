"""SGLang's sources as its wheels have them, with the names of their files in a checkout."""

import ast
import os
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

from specprefill_sgl.hooks import Hook

CHECKOUT = "python/"  # where a checkout has the package
SEAM_MODULE = "sglang/srt/spec_prefill.py"


def installed_release() -> str:
    """The release of SGLang that is installed here."""
    return distribution("sglang").version


def package_folder(release: str) -> Path:
    """Folder that holds the unpatched package `sglang` of a release: the installed one's, or one that `make release` fetched.

    Raises
    ------
    FileNotFoundError
        It is neither installed nor fetched.
    ValueError
        It has been patched.
    """
    if release == installed_release():
        spec = find_spec("sglang")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        folder = Path(spec.submodule_search_locations[0]).parent
    else:
        folder = _fetched(release)
        if not is_fetched(release):
            raise FileNotFoundError(f"sglang {release} is not in {folder}: make release RELEASE={release}")
    if (folder / SEAM_MODULE).exists():
        raise ValueError(f"{folder / 'sglang'} has been patched: this needs it as its wheel has it")
    return folder


def is_fetched(release: str) -> bool:
    """Whether `make release` has been here."""
    return (_fetched(release) / "sglang").is_dir()


def _fetched(release: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "specprefill-sgl" / f"sglang-{release}"


def file_of(folder: Path, target: str) -> str:
    """The module that holds a dotted target, as a path in the folder of the package."""
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        path = "/".join(parts[:end]) + ".py"
        if (folder / path).is_file():
            return path
    raise ValueError(f"no module of SGLang holds {target}")


def with_import(text: str) -> str:
    """A module's text that imports the seams, in the place that isort gives the line."""
    line = "from sglang.srt import spec_prefill"
    if line in text.splitlines():
        return text
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    behind = [node for node in imports if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang.srt.")]
    if behind:
        return _inserted(text, behind[0].lineno - 1, line)
    last = imports[-1]  # not of SGLang, or of another of its packages: `sglang.api`
    is_ours = isinstance(last, ast.ImportFrom) and (last.module or "").startswith("sglang.")
    return _inserted(text, last.end_lineno or last.lineno, line if is_ours else f"\n{line}")


def with_seam(text: str, module: str, hook: Hook) -> str:
    """A module's text with the function that a hook names decorated: outside of what else decorates it, as a hook would be.

    Raises
    ------
    ValueError
        The module does not define it.
    """
    node = _definition(text, module, hook.target)
    outer = [one for one in node.decorator_list if not _binds(one)]
    at = min((one.lineno for one in outer), default=node.lineno) - 1
    return _inserted(text, at, f'{" " * node.col_offset}@spec_prefill.{hook.kind.lower()}("{hook.path}")')


def _definition(text: str, module: str, target: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    body = ast.parse(text).body
    names = target.removeprefix(module.removesuffix(".py").replace("/", ".") + ".").split(".")
    for name in names[:-1]:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == name), [])
    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == names[-1]]
    if len(functions) != 1:
        raise ValueError(f"{module} defines {target} {len(functions)} times")
    return functions[0]


def _binds(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Name) and decorator.id in ("classmethod", "staticmethod")


def _inserted(text: str, at: int, line: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:at], f"{line}\n", *lines[at:]])
