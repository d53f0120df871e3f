"""Entry point `specprefill` of group `sglang.srt.plugins`: declares the hooks. Runs in every process: cheap, idempotent."""

import pkgutil

from specprefill_sgl.hooks import HOOKS, attachment


def register() -> None:
    """Register every hook with SGLang that its sources do not call anyway, once per process.

    SGLang applies them after all plugins have run.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in HOOKS:
        function = pkgutil.resolve_name(hook.path)
        if attachment.seam(hook) is None and all(known is not function for _, known, _ in HookRegistry._hooks[hook.target]):
            HookRegistry.register(hook.target, function, HookType[hook.kind])
