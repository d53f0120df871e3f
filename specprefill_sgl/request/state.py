"""What Speculative Prefill knows of one request: kept on SGLang's `Req`, read by the position, id and reply hooks."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from specprefill_sgl.request.backlog import Keep
from specprefill_sgl.request.options import RequestOptions
from specprefill_sgl.request.prompts import Outcome
from specprefill_sgl.request.reading import Reading
from specprefill_sgl.request.skipcode import offsets_of
from specprefill_sgl.selection.rule import Rule

_ATTRIBUTE = "spec_prefill"


@dataclass(slots=True)
class PromptState:
    """Options of a request and, once decided, its outcome.

    Attributes
    ----------
    options : RequestOptions
    prompt_tokens : int
        Length of the prompt as it arrived.
    rule : Rule
        How its tokens are chosen.
    keep : Keep
        The keep ratio it is selected with, and why; until then, what was asked for.
    method : str
        Who chooses them.
    reading : Reading or None
        The prompt in that one's own tokens, if it has a tokenizer of its own.
    outcome : Outcome or None
        None while the request waits for its draft.
    offsets : int64 [kept_tokens] or None
        Original position minus KV index of each kept token, where ids are coded; None when the prompt is whole (dense, or
        everything kept). Zeros where KV is predicted.
    delta : int
        The same for every later token: tokens dropped.
    retractions, said_then : int
        How often the request had been retracted when it was last looked at, and the output tokens it had then.
    asked : list of int
        Output tokens when the answer was asked what it lacks.
    pause : int
        Output tokens until it is asked again; 0: as many as at first.
    revived : list of (int, int)
        Output tokens when something returned, and how many tokens that was.
    kept_by_layer : list of (int, int)
        Of one that is pruned inside the target: layers from which on fewer prompt tokens are kept, and how many.
    backfilled : int or None
        Output tokens when all that was dropped had been prefilled after all; from then on the request is a dense one.
    """

    options: RequestOptions
    prompt_tokens: int
    rule: Rule
    keep: Keep
    method: str
    reading: Reading | None = None
    outcome: Outcome | None = None
    offsets: np.ndarray | None = None
    delta: int = 0
    retractions: int = 0
    said_then: int = 0
    asked: list[int] = field(default_factory=list)
    pause: int = 0
    revived: list[tuple[int, int]] = field(default_factory=list)
    kept_by_layer: list[tuple[int, int]] = field(default_factory=list)
    backfilled: int | None = None

    def decide(self, outcome: Outcome) -> None:
        """Record the outcome."""
        self.outcome = outcome
        if outcome.positions is not None and (outcome.predicted or len(outcome.positions) < self.prompt_tokens):
            self._prefill(outcome.positions)

    def take_over(self, outcome: Outcome, kept_tokens: int) -> None:
        """Record what another server decided, which prefilled so many tokens; all that follows is offset alike."""
        self.outcome = outcome
        if kept_tokens < self.prompt_tokens:
            self.delta = self.prompt_tokens - kept_tokens
            self.offsets = np.full(kept_tokens, self.delta, dtype=np.int64)

    def revive(self, positions: np.ndarray, said: int) -> None:
        """Other positions, after so many output tokens: what was kept, and what returned."""
        self.revived.append((said, len(positions) - len(self.kept)))
        assert self.outcome is not None
        self.outcome = msgspec.structs.replace(self.outcome, positions=positions)
        self._prefill(positions)

    def backfill(self, said: int) -> None:
        """Nothing is dropped any more, after so many output tokens."""
        self.backfilled, self.offsets = said, None

    def go_dense(self, reason: str) -> None:
        """Nothing is coded any more."""
        assert self.outcome is not None
        self.outcome = msgspec.structs.replace(self.outcome, positions=None, predicted=0, reason=reason)
        self.offsets, self.delta = None, 0

    def _prefill(self, positions: np.ndarray) -> None:
        self.offsets, self.delta = offsets_of(positions), self.prompt_tokens - len(positions)

    def prune(self, layer: int, positions: np.ndarray, **said: Any) -> None:
        """From a layer on only these prompt positions are kept; what the last such layer keeps is the outcome's.

        `said` are other fields of the outcome.
        """
        assert self.outcome is not None
        self.kept_by_layer = sorted((dict(self.kept_by_layer) | {layer: len(positions)}).items())
        if layer == self.kept_by_layer[-1][0]:
            self.outcome = msgspec.structs.replace(self.outcome, positions=positions, **said)

    @property
    def kept(self) -> np.ndarray:
        """Kept positions of a decided request that is not dense."""
        assert self.outcome is not None
        assert self.outcome.positions is not None
        return self.outcome.positions

    @property
    def is_sparse(self) -> bool:
        """Whether tokens were dropped or predicted, so that ids are coded and positions offset."""
        return self.offsets is not None

    @property
    def predicted(self) -> int:
        """Prompt tokens at the start whose KV is predicted."""
        return 0 if self.outcome is None else self.outcome.predicted

    def span_offsets(self, start: int, length: int) -> np.ndarray:
        """Offsets of KV indices [start, start + length), int64: kept prompt first, then the constant."""
        assert self.offsets is not None
        result: np.ndarray = np.full(length, self.delta, dtype=np.int64)
        kept = self.offsets[start : start + length]
        result[: len(kept)] = kept
        return result


def state_of(req: Any) -> PromptState | None:
    """The request's state, or None before it was first seen (and always without `--spec-prefill`)."""
    return getattr(req, _ATTRIBUTE, None)


def sparse_state_of(req: Any) -> PromptState | None:
    """The request's state if its ids are coded. An abort may have replaced the prompt: then it is not."""
    state = state_of(req)
    if state is None or state.offsets is None or len(req.origin_input_ids) != len(state.offsets):
        return None
    return state


def attach(req: Any, state: PromptState) -> None:
    """Keep the state on the request."""
    setattr(req, _ATTRIBUTE, state)
