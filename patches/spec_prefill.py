"""Where SGLang calls Speculative Prefill, the package specprefill-sgl: nothing changes where that is not installed.

`before`, `after` and `around` decorate a function of SGLang and name the one to call, with the arguments and results that a
hook of SGLang's plugins has. It returns at once where `--spec-prefill` is off, and is imported at its first call, so that
any module of SGLang may import this one.
"""

import functools
import pkgutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from sglang.srt.plugins.hook_registry import HookType, _wrap_fn

SEAMS: dict[str, tuple[str, str]] = {}  # target -> kind, function; of the modules that are imported


@functools.cache
def _is_installed() -> bool:
    return find_spec("specprefill_sgl") is not None


def _seam(kind: HookType, name: str) -> Callable[[Callable], Callable]:
    def decorate(original: Callable) -> Callable:
        if not _is_installed():
            return original
        SEAMS[f"{original.__module__}.{original.__qualname__}"] = (kind.name, name)
        function = functools.cache(lambda: pkgutil.resolve_name(name))

        def call(*args: Any, **kwargs: Any) -> Any:
            return function()(*args, **kwargs)

        return _wrap_fn(original, call, kind)

    return decorate


before = functools.partial(_seam, HookType.BEFORE)
after = functools.partial(_seam, HookType.AFTER)
around = functools.partial(_seam, HookType.AROUND)
