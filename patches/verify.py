"""`python -m patches.verify [RELEASE] [--no-servers] [pytest words]`: what a series promises, on a copy of SGLang.

It applies and goes off again with git and patch, adds no lint, calls what the table of hooks names and nothing else, and
SGLang with it passes the tests of contract, reference, radix cache and dense equality with no plugin but the CPU platform.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from patches import apply, series, sources

_ROOT = Path(__file__).parents[1]
_CONTRACT = ("tests/contract/test_hooks.py::test_target_has_the_expected_parameters",)
_SERVERS = ("tests/e2e/test_reference.py", "tests/e2e/test_radix_cache.py", "tests/e2e/test_dense_equality.py")
NO_PLUGIN = {"SGLANG_PLUGINS": "specprefill_cpu"}


def is_current(release: str) -> bool:
    """Whether the committed series is what `patches.build` would write."""
    folder = apply.FOLDER / release
    return {path.name: path.read_text() for path in folder.iterdir()} == series.build(release)


def applies(release: str, folder: Path) -> Path:
    """Apply the series to a copy, take it off again, apply it as in an installed wheel; returns the patched package's folder.

    Raises
    ------
    RuntimeError
    """
    pristine = sources.package_folder(release)
    holder = apply.copy(pristine, folder)
    apply.check(release, folder)
    apply.apply(release, folder)
    apply.apply(release, folder, reverse=True)
    if not apply.same(pristine, holder):
        raise RuntimeError("taking the series off does not give back what was there")
    apply.apply(release, holder, strip=2)
    return holder


def lint(pristine: Path, holder: Path, release: str) -> list[str]:
    """What ruff says of changed files that it does not say of the originals: order of imports, unused names, format."""
    files = apply.changed_files(release)
    new, old = (_ruff(folder, [path for path in files if (folder / path).exists()]) for folder in (holder, pristine))
    return sorted(new - old)


def _ruff(folder: Path, files: list[str]) -> set[str]:
    folder = folder.resolve()  # as ruff names files
    ruff = [sys.executable, "-m", "ruff"]
    rules = [
        "--isolated",
        "--select",
        "E9,F,I",
        "--config",
        'lint.isort.known-first-party=["sglang"]',
        "--output-format",
        "json",
    ]
    found = subprocess.run([*ruff, "check", *rules, *files], cwd=folder, capture_output=True, text=True)
    findings = {
        f"{Path(one['filename']).relative_to(folder)}: {one['code']} {re.sub(r'line [0-9]+', 'line', one['message'])}"
        for one in json.loads(found.stdout)
    }
    formatted = subprocess.run([*ruff, "format", "--isolated", "--check", *files], cwd=folder, capture_output=True, text=True)
    return findings | {line for line in formatted.stdout.splitlines() if line.startswith("Would reformat")}


def calls(holder: Path, release: str) -> set[tuple[str, str, str]]:
    """Target, kind and function of every seam in the sources of a patched package."""
    found = set()
    for path in apply.changed_files(release):
        module = path.removesuffix(".py").replace("/", ".")
        found |= set(_calls(ast.parse((holder / path).read_text()).body, module))
    return found


def _calls(body: list[ast.stmt], name: str):
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for one in node.decorator_list:
                if isinstance(one, ast.Call) and ast.unparse(one.func).startswith("spec_prefill."):
                    yield f"{name}.{node.name}", one.func.attr.upper(), one.args[0].value
            yield from _calls(node.body, f"{name}.{node.name}")


def main(argv: list[str]) -> None:
    """Stops at the first thing that does not hold."""
    parser = argparse.ArgumentParser(prog="python -m patches.verify", description=__doc__)
    parser.add_argument("release", nargs="?", default=sources.installed_release())
    parser.add_argument("--no-servers", action="store_true", help="only what needs no server")
    arguments, pytest_words = parser.parse_known_args(argv)
    release = arguments.release
    with tempfile.TemporaryDirectory(prefix="specprefill-patches-") as folder:
        if not is_current(release):
            sys.exit(f"patches/{release} is not what the table of hooks gives: python -m patches.build {release}")
        print(f"patches/{release}: as `python -m patches.build` writes it")
        holder = applies(release, Path(folder))
        print("git apply --check, patch -p1, patch -R -p1, patch -p2: without fuzz or offset, and back again")
        if found := lint(sources.package_folder(release), holder, release):
            sys.exit("\n".join(found))
        print(f"lint: nothing new in {len(apply.changed_files(release))} files")
        hooks = {(hook.target, hook.kind, hook.path) for hook in series.seams(release)}
        if differing := hooks ^ calls(holder, release):
            sys.exit(f"table and sources differ: {sorted(differing)}")
        print(f"seams: {len(hooks)}, those of the table")
        if (way := _attached(holder)) != "sources":
            sys.exit(f"a process that loads no plugin attaches by {way}")
        tests = [*_CONTRACT, *(() if arguments.no_servers else _SERVERS)]
        sys.exit(_pytest(holder, [*tests, *pytest_words]))


def _attached(holder: Path) -> str:
    program = "from specprefill_sgl.hooks import attachment, verify; verify(); print(attachment.attached())"
    words = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(words, cwd=_ROOT, env=_environment(holder), stdout=subprocess.PIPE, text=True).stdout.strip()


def _pytest(holder: Path, words: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *words], cwd=_ROOT, env=_environment(holder)).returncode


def _environment(holder: Path) -> dict[str, str]:
    return {**os.environ, **NO_PLUGIN, "PYTHONPATH": str(holder)}


if __name__ == "__main__":
    main(sys.argv[1:])
