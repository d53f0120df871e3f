"""How the CPU platform puts torch functions in the place of SGLang's Triton kernels."""

import importlib
import sys
from collections.abc import Callable

from specprefill_sgl.compat import releases


def replace(module: str, **functions: Callable) -> None:
    """Give a module's functions others' bodies, in this process, also where SGLang has imported them by name already.

    Called before models are built: what imports the module later binds the replacements.

    Raises
    ------
    AttributeError
        SGLang has no such function any more.
    """
    defining = importlib.import_module(releases.installed().MODULES.get(module, module))
    for name, function in functions.items():
        original = getattr(defining, name)
        setattr(defining, name, function)
        for loaded in [one for key, one in sys.modules.items() if key.startswith("sglang.")]:
            for alias in [key for key, value in vars(loaded).items() if value is original]:
                setattr(loaded, alias, function)
