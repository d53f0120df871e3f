"""The speculation stage: prompts in, kept positions or a reason out. The only place that drives a draft."""

import logging
import time
from array import array
from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from specprefill_sgl import eligibility, selection
from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.draft.group import DraftedPrompt
from specprefill_sgl.draft.model import MAX_PROMPTS, DraftModel
from specprefill_sgl.ranks import Ranks
from specprefill_sgl.scoring.torch_scoring import chunk_scores, layer_votes, max_votes
from specprefill_sgl.skipcode import as_numpy

logger = logging.getLogger(__name__)


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt to speculate on: token ids (`array('q')`), the fraction of chunks to keep, spans that are always kept."""

    ids: array
    keep_ratio: float
    protect: tuple[tuple[int, int], ...] = ()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the stage decided on one prompt.

    Attributes
    ----------
    positions : int64 [kept_tokens] or None
        Kept original positions, ascending; None: prefill dense, for `reason`.
    draft_ms, score_ms : float
        Wall time of the group the prompt was drafted in: draft forwards, and scoring with selection. Milliseconds.
    """

    positions: np.ndarray | None
    reason: str | None = None
    draft_ms: float = 0.0
    score_ms: float = 0.0


class Stage:
    """Drafts, scores and selects for groups of prompts, the same on every rank.

    Parameters
    ----------
    config : SpecPrefillConfig
    draft : DraftModel
    ranks : Ranks
        The tensor-parallel ranks the draft's heads are split over.
    vocab_size : int
        The draft's; a prompt with other ids is prefilled dense.
    """

    def __init__(self, config: SpecPrefillConfig, draft: DraftModel, ranks: Ranks, *, vocab_size: int):
        self.config, self.draft = config, draft
        self._ranks, self._vocab_size = ranks, vocab_size

    def without_draft(self, prompt: Prompt) -> Outcome | None:
        """The outcome of a prompt that needs no draft, or cannot have one; None if it must be drafted."""
        n_tokens = len(prompt.ids)
        if selection.keeps_everything(self._forced(prompt), prompt.keep_ratio):
            return Outcome(positions=np.arange(n_tokens))
        if n_tokens + self.config.lookahead > self.draft.context_len:
            return Outcome(positions=None, reason=eligibility.DRAFT_CONTEXT)
        if self.draft.tokens_needed(n_tokens) > self.draft.max_tokens:
            return Outcome(positions=None, reason=eligibility.DRAFT_POOL)
        if as_numpy(prompt.ids).max() >= self._vocab_size:
            return Outcome(positions=None, reason=eligibility.DRAFT_VOCABULARY)
        return None

    def group_size(self, prompts: Sequence[Prompt]) -> int:
        """How many of the waiting prompts, in order, are drafted together: always one, more while they fit one forward."""
        tokens = slots = 0
        for size, prompt in enumerate(prompts[:MAX_PROMPTS]):
            tokens += len(prompt.ids)
            slots += self.draft.tokens_needed(len(prompt.ids))
            if size and (tokens > self.draft.chunk_tokens or slots > self.draft.max_tokens):
                return size
        return min(len(prompts), MAX_PROMPTS)

    def run(self, prompts: Sequence[Prompt]) -> list[Outcome]:
        """Draft a group. Never raises for a failing draft: all its prompts become dense, on all ranks, pools empty."""
        self.draft.synchronize()  # the target's forward in flight is not the draft's time
        started = time.perf_counter()
        votes: list[torch.Tensor] = []
        drafted = started
        error: str | None = None
        try:
            votes, drafted = self.votes(prompts)
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
            logger.exception("Speculative prefill: drafting %d prompts failed; they are prefilled dense.", len(prompts))
        finally:
            self.draft.clear()
        chosen = None if self._ranks.any_error(error) else self._select(prompts, votes)
        if chosen is None:
            return [Outcome(positions=None, reason=eligibility.DRAFT_ERROR) for _ in prompts]
        draft_ms, score_ms = (drafted - started) * 1e3, (time.perf_counter() - drafted) * 1e3
        size = self.config.chunk_size
        outcomes = [
            Outcome(positions=selection.chunk_positions(chunks, len(prompt.ids), size), draft_ms=draft_ms, score_ms=score_ms)
            for prompt, chunks in zip(prompts, chosen, strict=True)
        ]
        if self._ranks.is_first:
            logger.info(
                "Spec prefill batch, #prompt: %d, #token: %d, #kept-token: %d, draft ms: %.1f, score ms: %.1f",
                len(prompts),
                sum(len(prompt.ids) for prompt in prompts),
                sum(len(outcome.positions) for outcome in outcomes if outcome.positions is not None),
                draft_ms,
                score_ms,
            )
        return outcomes

    def votes(self, prompts: Sequence[Prompt]) -> tuple[list[torch.Tensor], float]:
        """Draft a group: each prompt's votes, float32 [votes, prompt_tokens], and when the drafting itself was over.

        Everything downstream needs of the draft: another source of votes is another selector.
        """
        drafted = self.draft.draft([prompt.ids for prompt in prompts])
        self.draft.synchronize()
        at = time.perf_counter()
        return [self._votes(one) for one in drafted], at

    def _votes(self, drafted: DraftedPrompt) -> torch.Tensor:
        """Float32 [votes, prompt_tokens] over this rank's heads and all voting layers."""
        layers = self.draft.voting_layers(len(drafted.slots))
        return max_votes(
            layer_votes(
                drafted.queries[layer_id],
                self.draft.keys(layer_id)[drafted.slots],
                scaling=layer.scaling,
                logit_cap=layer.logit_cap,
                pool_kernel=self.config.pool_kernel,
            )
            for layer_id, layer in layers.items()
        )

    def _select(self, prompts: Sequence[Prompt], votes: list[torch.Tensor]) -> list[np.ndarray] | None:
        """Rank 0's kept chunks per prompt, or None if the scores are unusable."""
        scores = [chunk_scores(self._ranks.maximum(one), self.config.chunk_size).cpu().numpy() for one in votes]
        chosen: list[np.ndarray] | None = None
        if self._ranks.is_first:
            try:
                chosen = [
                    selection.select_chunks(score, self._forced(prompt), prompt.keep_ratio)
                    for prompt, score in zip(prompts, scores, strict=True)
                ]
            except ValueError:
                logger.exception("Speculative prefill: selection failed; %d prompts are prefilled dense.", len(prompts))
        return self._ranks.from_first(chosen)

    def _forced(self, prompt: Prompt) -> np.ndarray:
        return selection.forced_chunks(
            len(prompt.ids),
            chunk_size=self.config.chunk_size,
            keep_first=self.config.keep_first,
            protect=prompt.protect,
        )
