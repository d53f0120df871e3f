"""The pages say what the code says, are short, and name what there is."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([*(_ROOT / "docs").glob("*.md"), *_ROOT.glob("*.md")])
_LONGEST = {"README.md": 150}
_ROOTS = ("benchmarks/", "tests/", "specprefill_sgl/", "docs/")


def test_generated_tables_do_not_lag():
    """In a process of its own: metrics are registered once a process."""
    run = subprocess.run(
        [sys.executable, "-m", "docs.generate", "--check"], cwd=_ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_a_page_is_short(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= _LONGEST.get(page.name, 200)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_files_and_links_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:" + "|".join(_ROOTS) + r")[\w./-]+)`", text):
        assert (_ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    """Modules and subcommands that a reader is told to run."""
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ((?:benchmarks|docs)[\w.]*)", text):
        path = _ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for command in re.findall(r"python -m specprefill_sgl ([\w-]+)", text):
        assert importlib.util.find_spec(f"specprefill_sgl.cli.{command.replace('-', '_')}"), command


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_flags_and_fields_exist(page):
    from docs import generate
    from specprefill_sgl.request import options

    text = page.read_text(encoding="utf-8")
    flags = {generate.flag_of(name) for name in generate._flags()}
    assert set(re.findall(r"--spec-prefill(?:-[a-z]+)*\b(?!-)", text)) <= flags | {"--spec-prefill"}
    named = set(re.findall(r"\bspec_prefill_(?!votes)[a-z_]*[a-z]\b", text))
    metrics = set(re.findall(r"sglang:(spec_prefill_\w+)", text))
    assert named - metrics - {one.removesuffix("_bucket") for one in metrics} <= {*options.fields()}
