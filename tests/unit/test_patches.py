"""The committed series is what the table of hooks gives, and does with SGLang's sources what the hooks do at run time."""

import sys
import types

import pytest

from patches import apply, series, sources, verify
from patches.build import FOLDER
from specprefill_sgl.compat import releases
from specprefill_sgl.hooks import HOOKS, Hook, attachment, of_release

RELEASE = sources.installed_release()
CLASS = """\
import torch


class Model:
    @classmethod
    def of(cls, batch):
        return batch

    @staticmethod
    @torch.no_grad()
    def run(batch):
        return batch
"""


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    return verify.applies(RELEASE, tmp_path_factory.mktemp("checkout"))


def test_committed_series_is_what_the_table_gives(monkeypatch):
    assert (FOLDER / RELEASE).is_dir()
    assert verify.is_current(RELEASE), "hooks or their docstrings changed: python -m patches.build"
    monkeypatch.setattr(series, "of_release", lambda release: HOOKS[1:])
    assert not verify.is_current(RELEASE)


@pytest.mark.parametrize("release", releases.TESTED[1:])
def test_series_of_an_older_release(release):
    """The same seams, other places; whether they are current is seen where that release has been fetched (`make release`)."""
    names = (FOLDER / release / "series").read_text()
    assert names == (FOLDER / RELEASE / "series").read_text(), "make release; python -m patches.build"
    moved = {target: there["target"] for target, there in releases.of(release).MOVED.items()}
    assert [hook.target for hook in of_release(release)] == [moved.get(hook.target, hook.target) for hook in HOOKS]
    if sources.is_fetched(release):
        assert verify.is_current(release), f"hooks or their docstrings changed: python -m patches.build {release}"


def test_sources_call_what_the_table_names(patched):
    """Applied, taken off again and applied as in an installed wheel on the way."""
    hooks = {(hook.target, hook.kind, hook.path) for hook in series.seams(RELEASE)}
    assert verify.calls(patched, RELEASE) == hooks


def test_no_new_lint(patched):
    assert verify.lint(sources.package_folder(RELEASE), patched, RELEASE) == []


def test_lint_sees_what_a_patch_breaks(patched):
    file = patched / apply.changed_files(RELEASE)[1]
    text = file.read_text()
    try:
        file.write_text(f"import unused\n{text}")
        assert any("unused" in line for line in verify.lint(sources.package_folder(RELEASE), patched, RELEASE))
    finally:
        file.write_text(text)


def test_a_patch_that_finds_other_sources_is_refused(patched):
    with pytest.raises(RuntimeError, match=r"0001-seams.patch"):
        apply.check(RELEASE, patched.parent)


@pytest.mark.parametrize(("name", "below"), [("of", "    @classmethod"), ("run", "    @staticmethod")])
def test_a_seam_is_outside_of_other_decorators(name, below):
    lines = sources.with_seam(CLASS, "sglang/m.py", Hook(f"sglang.m.Model.{name}", "AFTER", "model:mask_ids", ())).splitlines()
    at = lines.index('    @spec_prefill.after("specprefill_sgl.hooks.model:mask_ids")')
    assert lines[at - 1] == below


@pytest.mark.parametrize("target", ["sglang.m.Model.inherited", "sglang.m.Other.of"])
def test_a_target_that_is_not_there_stops_the_build(target):
    with pytest.raises(ValueError, match=target):
        sources.with_seam(CLASS, "sglang/m.py", Hook(target, "AFTER", "model:mask_ids", ()))


@pytest.fixture
def seams(monkeypatch):
    """The module that the patches add, and a module of functions to call."""
    from patches import spec_prefill

    said = types.ModuleType("said")
    monkeypatch.setitem(sys.modules, "said", said)
    monkeypatch.setattr(spec_prefill, "SEAMS", {})
    return spec_prefill, said


def test_seams_call_as_hooks_do(seams):
    spec_prefill, said = seams
    said.first = lambda number: ((number + 1,), {})
    said.then = lambda result, number: [*result, number]
    said.around = lambda original, number: [*original(number), "end"]

    @spec_prefill.around("said:around")
    @spec_prefill.after("said:then")
    @spec_prefill.before("said:first")
    def numbers(number):
        """Its own documentation."""
        return [number]

    assert numbers(1) == [2, 1, "end"]
    assert numbers.__doc__ == "Its own documentation."
    assert list(spec_prefill.SEAMS.values())[-1] == ("AROUND", "said:around")


def test_seams_are_nothing_where_the_package_is_not_installed(seams, monkeypatch):
    spec_prefill, _ = seams
    monkeypatch.setattr(spec_prefill, "_is_installed", lambda: False)
    assert spec_prefill.after("said:then")(len) is len
    assert spec_prefill.SEAMS == {}


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ((HOOKS[0].kind, HOOKS[0].path), None),
        ((HOOKS[0].kind, "specprefill_sgl.hooks.launch:former"), "was patched for another version of specprefill-sgl"),
        (None, "could not be hooked"),
    ],
)
def test_seams_of_another_version_are_refused(monkeypatch, call, error):
    from sglang.srt.plugins.hook_registry import HookRegistry

    monkeypatch.setattr(attachment, "seam", lambda hook: call)
    monkeypatch.setattr(HookRegistry, "_patched", set())
    if error is None:
        attachment.check(HOOKS[0])
    else:
        with pytest.raises(ValueError, match=error):
            attachment.check(HOOKS[0])


@pytest.mark.parametrize("in_sources", [len(HOOKS), 3, 0])
def test_nothing_is_attached_twice(monkeypatch, in_sources):
    """What the sources call is not registered, and both ways together are said to be so."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    from specprefill_sgl.plugin import register

    patched = {hook.target: (hook.kind, hook.path) for hook in HOOKS[:in_sources]}
    monkeypatch.setattr(attachment, "seam", lambda hook: patched.get(hook.target))
    monkeypatch.setattr(HookRegistry, "_hooks", type(HookRegistry._hooks)(list))
    register()
    assert [*HookRegistry._hooks] == [hook.target for hook in HOOKS[in_sources:]]
    assert attachment.attached() == {len(HOOKS): "sources", 3: "plugin and sources", 0: "plugin"}[in_sources]
