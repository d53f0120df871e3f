"""The controls as methods of the server (`specprefill_sgl.methods.protocol`): no model reads, a formula votes."""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.quality.controls import CONTROLS
from specprefill_sgl.methods.registry import METHODS, Entry
from specprefill_sgl.request.prompts import Cast, Prompt
from specprefill_sgl.request.skipcode import as_numpy
from specprefill_sgl.selection.rule import Rule


def register() -> None:
    """Add them to the methods that `--spec-prefill-method` may name; idempotent."""
    METHODS.update(dict.fromkeys(CONTROLS, Entry(__name__)))


def check_at_start(*_args: Any) -> None:
    """Nothing can be wrong."""


def model_path(*_args: Any) -> None:
    """No heads vote."""


def load(name: str, _config: Any, _scheduler: Any, _ranks: Any, chunk_tokens: int) -> "ControlMethod":
    """As a server loads its methods."""
    return ControlMethod(name, chunk_tokens)


class ControlMethod:
    """See `specprefill_sgl.methods.protocol.Method`."""

    max_tokens = longest = 2**31 - 1
    is_inside = False
    device = torch.device("cpu")

    def __init__(self, name: str, chunk_tokens: int):
        self.name, self.described, self.chunk_tokens = name, name, chunk_tokens

    def init_attention_backend(self) -> None:
        """It has none."""

    init_runner = check = clear = init_attention_backend

    def adapted(self, rule: Rule) -> Rule:
        """As it is."""
        return rule

    def refuses(self, _prompt: Prompt) -> str | None:
        """Nothing."""
        return None

    def tokens_needed(self, prompt: Prompt) -> int:
        """What bounds a group."""
        return len(prompt.ids)

    def begin(self, prompts: Sequence[Prompt]) -> "ControlPass":
        """Votes at once."""
        return ControlPass(self.name, prompts)

    def usage(self) -> dict[str, int]:
        """Nothing."""
        return {}

    def used_tokens(self) -> int:
        """None."""
        return 0


class ControlPass:
    """See `specprefill_sgl.methods.protocol.Pass`."""

    has_read = True

    def __init__(self, name: str, prompts: Sequence[Prompt]):
        self._votes: list[Cast | None] = [_cast(name, prompt) for prompt in prompts]
        self.cached = [0] * len(prompts)

    def step(self) -> bool:
        """There is nothing to wait for."""
        return True

    def cancel(self, index: int) -> None:
        """No votes of this prompt."""
        self._votes[index] = None

    def votes(self) -> list[Cast | None]:
        """One each."""
        return self._votes

    def joined(self, cast: Cast) -> Cast:
        """The same on every rank."""
        return cast

    def release(self) -> None:
        """Nothing is held."""


def _cast(name: str, prompt: Prompt) -> Cast:
    importance = CONTROLS[name](as_numpy(prompt.ids), prompt.rule.chunk_size)
    return Cast(torch.from_numpy(importance).float()[None], 0, [], [])
