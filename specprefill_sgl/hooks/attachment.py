"""How hooks come into SGLang: its plugin registry applies them, or its sources were patched to call them (`patches/`)."""

import contextlib
import functools
import inspect
import pkgutil
from importlib import import_module
from importlib.util import find_spec

from specprefill_sgl.config import ConfigError
from specprefill_sgl.hooks import HOOKS, Hook

_SEAMS = "sglang.srt.spec_prefill"  # the module that the patches add


@functools.cache
def _is_patched() -> bool:
    """Asked of every hook, and by each `/server_info`."""
    return find_spec(_SEAMS) is not None


def seam(hook: Hook) -> tuple[str, str] | None:
    """What SGLang's sources call at a hook's target, and how; None where they were not patched."""
    if not _is_patched():
        return None
    with contextlib.suppress(ImportError, AttributeError):
        pkgutil.resolve_name(hook.target)  # decorated as it is imported
    return import_module(_SEAMS).SEAMS.get(hook.target)


def parameters(hook: Hook) -> tuple[str, ...]:
    """What the function at a hook's target takes, as many as ours counts on."""
    holder, name = hook.target.rsplit(".", 1)
    function = inspect.getattr_static(pkgutil.resolve_name(holder), name)
    function = inspect.unwrap(getattr(function, "__func__", function))
    return tuple(inspect.signature(function).parameters)[: len(hook.parameters)]


def check(hook: Hook) -> None:
    """Refuse a hook that is not in place.

    Raises
    ------
    ConfigError
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    call = seam(hook)
    if call not in (None, (hook.kind, hook.path)):
        raise ConfigError(
            f"--spec-prefill cannot be served: SGLang's {hook.target} was patched for another version of specprefill-sgl "
            f"(it calls {call[1]}); apply this version's patches."
        )
    if call is None and hook.target not in HookRegistry._patched:
        raise ConfigError(f"--spec-prefill cannot be served: SGLang's {hook.target} could not be hooked.")


def attached() -> str:
    """`plugin`, `sources`, or both where the sources lack some of the calls: what /server_info and `check` say."""
    ways = {"plugin" if seam(hook) is None else "sources" for hook in HOOKS}
    return " and ".join(sorted(ways))
