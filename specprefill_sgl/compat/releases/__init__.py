"""SGLang's releases that were tested, and what differs between them: a file for each, with the same names in all of them.

Attributes of such a file
-------------------------
MOVED : dict[str, dict[str, Any]]
    Hook targets of the newest release that are elsewhere in this one: `target` and `parameters` there.
MODULES : dict[str, str]
    Modules of the newest release whose functions the CPU platform replaces, and their names in this one.
REFUSED : tuple
    More options that cannot be combined: as `compat.options` has them.
NAMES_APP : bool
    Whether it can be said which app processes of `--tokenizer-worker-num` import (SGLANG_HTTP_SERVER_APP_PATH).
attention_ranks : callable
    Context manager under which a draft is split over the ranks of one attention group.
"""

import functools
from importlib import import_module
from importlib.metadata import version
from typing import Any

TESTED = ("0.5.23", "0.5.22")  # the newest first


def of(release: str) -> Any:
    """The file of a release; of one that was not tested the newest's, so that it can be named before it is refused."""
    name = release if release in TESTED else TESTED[0]
    return import_module(f"{__name__}.v{name.replace('.', '_')}")


@functools.cache
def installed() -> Any:
    """That of the release that is imported here."""
    return of(version("sglang"))
