"""What a method is: who says which tokens matter (docs/architecture.md)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from specprefill_sgl.request.prompts import Cast, Predicted, Prompt
from specprefill_sgl.selection.rule import Rule


class Planned(NamedTuple):
    """A method's model before it is loaded.

    Attributes
    ----------
    model : ModelConfig
    weights : str or None
        Folder or name of weights of its own; None: it shares the target's.
    rule : Rule or None
        What its votes are counted by, if it votes.
    token_bytes : int
        What it keeps of a token beside keys and values.
    """

    model: Any
    weights: str | None
    rule: Rule | None
    token_bytes: int = 0


class Pass(Protocol):
    """A group of prompts on its way through a method: steps, then votes. `release` must follow, whatever happened.

    Attributes
    ----------
    cached : list of int
        Tokens of each prompt that did not have to be read.
    """

    cached: list[int]

    @property
    def has_read(self) -> bool:
        """Whether the prompts are read, so that the next step is the lookahead, if there is one."""

    def step(self) -> bool:
        """At most one forward; whether the votes can be counted."""

    def cancel(self, index: int) -> None:
        """A prompt that is not wanted any more: its votes will be None."""

    def votes(self) -> Sequence[Cast | Predicted | None]:
        """After the last step, of each prompt, as far as this rank knows; or what it has predicted, the same on every rank."""

    def joined(self, cast: Cast) -> Cast:
        """The votes of all ranks; called by all in the same order."""

    def release(self) -> None:
        """Give back what the group holds."""


class Method(Protocol):
    """A loaded method. One object in each scheduler process, the same decisions on every rank.

    Attributes
    ----------
    name : str
        What `--spec-prefill-method` calls it.
    described : str
        What messages call it: the flag it comes from, and its value.
    chunk_tokens : int
        Most prompt tokens in one forward.
    max_tokens : int
        Most tokens, by `tokens_needed`, of prompts in one pass.
    longest : int
        Most tokens of a prompt, its lookahead included.
    device : torch.device
        Where it runs.
    is_inside : bool
        Whether it reads nothing ahead, since it drops tokens inside the target's own forward.
    """

    name: str
    described: str
    chunk_tokens: int
    is_inside: bool

    @property
    def max_tokens(self) -> int: ...
    @property
    def longest(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    def init_attention_backend(self) -> None:
        """Once SGLang's own are made."""

    def init_runner(self) -> None:
        """Once SGLang's CUDA graphs are captured."""

    def check(self) -> None:
        """After a first prompt went through, well or not.

        Raises
        ------
        ConfigError
            What is wrong with a flag.
        """

    def adapted(self, rule: Rule) -> Rule:
        """What becomes of a rule that a request asks for."""

    def refuses(self, prompt: Prompt) -> str | None:
        """Why a prompt must be prefilled dense (`request.eligibility`); None if it need not."""

    def tokens_needed(self, prompt: Prompt) -> int:
        """What a prompt takes of `max_tokens`."""

    def begin(self, prompts: Sequence[Prompt]) -> Pass:
        """Start on prompts of one rule that fit together. One pass at a time."""

    def clear(self) -> None:
        """Forget everything, also after a failure; no pass may be in progress."""

    def usage(self) -> Mapping[str, int]:
        """What it holds, for `/server_info`."""

    def used_tokens(self) -> int:
        """Slots in use, those of cached prompts included."""
