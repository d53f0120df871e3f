"""Entry point `specprefill` of group `sglang.srt.plugins`: declares the hooks. Runs in every process: cheap, idempotent."""

from importlib import import_module

from specprefill_sgl.hooks import HOOKS


def register() -> None:
    """Register every hook with SGLang, once per process; SGLang applies them after all plugins have run."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in HOOKS:
        module, name = hook.function.split(":")
        function = getattr(import_module(f"specprefill_sgl.hooks.{module}"), name)
        if all(registered is not function for _, registered, _ in HookRegistry._hooks[hook.target]):
            HookRegistry.register(hook.target, function, HookType[hook.kind])
