"""Every hook target exists in the installed SGLang with the parameters our functions count on."""

from importlib import import_module

import pytest

from specprefill_sgl.hooks import HOOKS, attachment, verify


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.target)
def test_target_has_the_expected_parameters(hook):
    assert attachment.parameters(hook) == hook.parameters


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.target)
def test_our_function_exists(hook):
    module, name = hook.function.split(":")
    assert callable(getattr(import_module(f"specprefill_sgl.hooks.{module}"), name))


@pytest.fixture
def registry(monkeypatch):
    from sglang.srt.plugins.hook_registry import HookRegistry

    monkeypatch.setattr(HookRegistry, "_hooks", type(HookRegistry._hooks)(list))
    monkeypatch.setattr(HookRegistry, "_patched", set())
    return HookRegistry


def test_register_is_idempotent(registry):
    from specprefill_sgl.plugin import register

    register()
    register()
    assert {target: len(hooks) for target, hooks in registry._hooks.items()} == {hook.target: 1 for hook in HOOKS}


def test_verify_names_the_first_hook_that_did_not_apply(registry):
    registry._patched.update(hook.target for hook in HOOKS)
    verify()
    registry._patched.discard(HOOKS[3].target)
    with pytest.raises(ValueError, match="--spec-prefill cannot be served") as error:
        verify()
    assert HOOKS[3].target in str(error.value)


def test_entry_points_have_the_fixed_names():
    from importlib.metadata import entry_points

    assert entry_points(group="sglang.srt.plugins")["specprefill"].value == "specprefill_sgl.plugin:register"
    assert entry_points(group="sglang.srt.platforms")["specprefill_cpu"].value == "specprefill_sgl.platforms:activate"
