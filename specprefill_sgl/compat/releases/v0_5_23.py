"""SGLang 0.5.23, whose names are used everywhere else."""

from contextlib import AbstractContextManager
from typing import Any

MOVED: dict[str, dict[str, Any]] = {}
MODULES: dict[str, str] = {}
REFUSED = ()
NAMES_APP = True


def attention_ranks() -> AbstractContextManager[None]:
    """A draft's layout of ranks has been a thing of its own since this release."""
    from sglang.srt.configs.draft_parallel import DraftParallelSpec, DraftTPExecution
    from sglang.srt.speculative.draft_parallel import resolve_draft_parallel_layout
    from sglang.srt.speculative.spec_utils import draft_tp_context

    return draft_tp_context(resolve_draft_parallel_layout(DraftParallelSpec(tp_execution=DraftTPExecution.SINGLE_GROUP)))
