"""A lazy request in the target's batches: what of it is in which layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from specprefill_sgl.methods.lazy.parked import Parked
from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.request.state import PromptState
from specprefill_sgl.selection.rule import MAX_WINDOW


@dataclass(eq=False)
class Pruned:
    """One request since it was last admitted. Stages count from 1, as parts of the layers do: part 0 sees everything.

    Attributes
    ----------
    retractions : int
        How often it had been retracted when it was admitted.
    start : int
        Leading tokens whose KV was in the radix cache, in all layers.
    kept : list of int64 [tokens]
        Of each stage, prompt positions that are in its layers; ascending, empty until they are chosen. A request that was
        retracted keeps them.
    parked : list of Parked
        Of each stage, tokens that wait in front of it.
    dropped : list of int
        Of each stage, tokens of the sequence that are not in it.
    queries : dict of int to list of Tensor
        `layer_id` -> queries of the tokens that vote on the prompt, then of those that ask what the answer lacks.
    voters : dict of int to list of int
        `layer_id` -> their positions.
    is_read : bool
        Whether the prompt is.
    """

    retractions: int
    start: int
    kept: list[np.ndarray]
    parked: list[Parked]
    dropped: list[int]
    queries: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    voters: dict[int, list[int]] = field(default_factory=dict)
    is_read: bool = False

    def take_queries(self, layers: Sequence[int]) -> tuple[dict[int, torch.Tensor], list[int]]:
        """Those of some layers, [votes, heads, head_dim] each, which are gone then; and the positions of their tokens."""
        queries = {layer: torch.cat(self.queries.pop(layer))[-MAX_WINDOW:] for layer in layers if layer in self.queries}
        voters = [self.voters.pop(layer)[-MAX_WINDOW:] for layer in layers if layer in self.voters]
        return queries, voters[0] if voters else []

    @property
    def n_bytes(self) -> int:
        """Of hidden states."""
        return sum(one.n_bytes for one in self.parked)


def admitted(stages: int, start: int, retractions: int, before: Pruned | None) -> Pruned:
    """A request that enters a batch anew, with what it kept if it was in one before."""
    kept = before.kept if before is not None else [np.arange(0)] * (stages + 1)
    return Pruned(retractions, start, list(kept), [Parked() for _ in range(stages + 1)], [0] * (stages + 1))


@dataclass(eq=False)
class Seat:
    """A lazy request in one batch.

    Attributes
    ----------
    state : PromptState
    pruned : Pruned
    row : int
        Its row of the request table.
    start, end : int
        Tokens of its sequence in this batch.
    is_last : bool
        Whether an extend ends with this batch.
    prompt : callable
        Its prompt, made when it is needed.
    every, chunks, times : int
        Output tokens after which dropped tokens may return, chunks at a time, times.
    """

    state: PromptState
    pruned: Pruned
    row: int
    start: int
    end: int
    is_last: bool
    prompt: Callable[[], Prompt]
    every: int
    chunks: int
    times: int

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return self.state.prompt_tokens

    @property
    def said(self) -> int:
        """Output tokens, the one that a decode is fed included."""
        return self.end - self.prompt_tokens

    @property
    def may_return(self) -> bool:
        """Whether dropped tokens may return, now or later."""
        waits = any(len(one.positions) for one in self.pruned.parked)
        return bool(self.every) and waits and len(self.state.revived) < self.times
