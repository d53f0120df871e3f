"""The speculation stage: prompts in, kept positions or a reason out. The only place that drives a draft."""

import logging
from array import array
from collections.abc import Sequence

import numpy as np
import torch

from specprefill_sgl import eligibility, selection
from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.draft.drafting import Drafting
from specprefill_sgl.draft.model import DraftModel
from specprefill_sgl.draft.sizes import MAX_PROMPTS
from specprefill_sgl.observability.timer import DeviceTimer
from specprefill_sgl.prompts import Outcome, Prompt
from specprefill_sgl.ranks import Ranks
from specprefill_sgl.scoring.device_selection import select
from specprefill_sgl.scoring.torch_scoring import chunk_scores
from specprefill_sgl.skipcode import as_numpy
from specprefill_sgl.turns import Turn, Turns

logger = logging.getLogger(__name__)


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
    window : int
        Tokens that the target's windowed layers look back on; 0 if it has none.
    after_snapshot : int
        Most tokens of a finished request that follow the last snapshot of a hybrid target's recurrent state; else 0.
    """

    def __init__(
        self, config: SpecPrefillConfig, draft: DraftModel, ranks: Ranks, *, vocab_size: int, window: int, after_snapshot: int
    ):
        self.config, self.draft, self.window, self.after_snapshot = config, draft, window, after_snapshot
        self._ranks, self._vocab_size = ranks, vocab_size
        self.turns = Turns()
        self.whole_turns = Turns()  # of hybrid targets; apart, so that they never push out what was drafted
        self._prompts: list[Prompt] | None = None  # of the group in progress
        self._drafting: Drafting | None = None

    def without_draft(self, prompt: Prompt) -> Outcome | None:
        """The outcome of a prompt that needs no draft, or cannot have one; None if it must be drafted."""
        n_tokens = len(prompt.ids)
        if (turn := self.turns.repeated(prompt.ids, _settings(prompt), prompt.namespace)) is not None:
            return Outcome(positions=turn.positions, draft_cached_tokens=n_tokens, scores=turn.scores)
        if prompt.kept is None and prompt.cached and n_tokens - prompt.cached < prompt.min_tokens:
            return Outcome(positions=None, reason=eligibility.PREFIX_CACHED, cached_tokens=prompt.cached)
        if selection.keeps_everything(self._forced(prompt), prompt.keep_ratio):
            return Outcome(positions=np.arange(n_tokens))
        if n_tokens + self.config.lookahead > self.draft.context_len:
            return Outcome(positions=None, reason=eligibility.DRAFT_CONTEXT)
        if self.draft.tokens_needed(n_tokens) > self.draft.max_tokens:
            return Outcome(positions=None, reason=eligibility.DRAFT_POOL)
        if as_numpy(prompt.ids).max() >= self._vocab_size:
            return Outcome(positions=None, reason=eligibility.DRAFT_VOCABULARY)
        return None

    def warm_up(self) -> bool:
        """Draft a made-up prompt, so that no request waits for kernels to be compiled; whether the draft can do it."""
        room = min(self.draft.context_len, self.draft.max_tokens) - self.config.lookahead
        n_tokens = max(1, min(4 * self.config.chunk_size, room))
        self.begin([Prompt(ids=array("q", bytes(8 * n_tokens)), keep_ratio=self.config.keep_ratio)])
        while (outcomes := self.advance()) is None:
            pass
        self.clear()
        return outcomes[0].positions is not None

    def group_size(self, prompts: Sequence[Prompt]) -> int:
        """How many of the waiting prompts, in order, are drafted together: always one, more while they fit one forward."""
        tokens = slots = 0
        for size, prompt in enumerate(prompts[:MAX_PROMPTS]):
            tokens += len(prompt.ids)
            slots += self.draft.tokens_needed(len(prompt.ids))
            if size and (tokens > self.draft.chunk_tokens or slots > self.draft.max_tokens):
                return size
        return min(len(prompts), MAX_PROMPTS)

    def remember(self, prompt: Prompt, outcome: Outcome) -> Turn:
        """Keep what was selected, for the same prompt again and, once the turn has an answer, for the turn after it."""
        assert outcome.positions is not None
        turn = Turn(
            ids=prompt.ids,
            positions=outcome.positions,
            settings=_settings(prompt),
            namespace=prompt.namespace,
            scores=outcome.scores,
        )
        return self.turns.add(turn)

    def remember_whole(self, prompt: Prompt) -> Turn:
        """Keep a prompt that was prefilled whole, for the turn after it."""
        return self.whole_turns.add(Turn(ids=prompt.ids, positions=None, settings=(), namespace=prompt.namespace))

    def answered(self, turn: Turn, answer: array) -> None:
        """The final answer to a remembered turn."""
        (self.turns if turn.positions is not None else self.whole_turns).add_answer(turn, answer)

    def begin(self, prompts: Sequence[Prompt]) -> None:
        """Start on a group of prompts; `advance` until it gives outcomes. One group at a time."""
        assert self._prompts is None
        self._prompts, self._drafting = list(prompts), None
        stages = ("draft", "lookahead", "score", "select")
        self._timers = {name: DeviceTimer(self.draft.device, f"spec_prefill.{name}") for name in stages}

    @property
    def is_drafting(self) -> bool:
        """Whether a group is in progress."""
        return self._prompts is not None

    def cancel(self, index: int) -> None:
        """A prompt of the group that is not wanted any more."""
        if self._drafting is not None:
            self._drafting.cancel(index)

    def source(self, prompts: Sequence[Prompt]) -> Drafting:
        """Where votes come from."""
        return Drafting(self.draft, prompts)

    def advance(self) -> list[Outcome] | None:
        """One draft forward; the group's outcomes once it is done, else None.

        Never raises for a failing draft: all prompts of the group become dense, on all ranks, and the draft's cache is emptied.
        """
        assert self._prompts is not None
        votes: list[torch.Tensor | None] | None = None
        error: str | None = None
        try:
            self._timers["draft"].keep_up()
            if self._drafting is None:
                self._drafting = self.source(self._prompts)
            with self._timers["lookahead" if self._drafting.has_read else "draft"].span():
                done = self._drafting.step()
            if done:
                with self._timers["score"].span():
                    votes = self._drafting.votes()
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
            logger.exception("Speculative prefill: drafting %d prompts failed; they are prefilled dense.", len(self._prompts))
        if self._ranks.any_error(error) is not None:
            return self._failed()
        return None if votes is None else self._finished(votes)

    def drop(self) -> None:
        """Give up the group in progress; what it has read stays cached."""
        if self._drafting is not None:
            self._drafting.release()
        self._prompts = self._drafting = None

    def clear(self) -> None:
        """Drop the group in progress and everything the draft remembers."""
        self._prompts = self._drafting = None
        self.turns.clear()
        self.whole_turns.clear()
        self.draft.clear()

    def _failed(self) -> list[Outcome]:
        assert self._prompts is not None
        outcomes = [Outcome(positions=None, reason=eligibility.DRAFT_ERROR) for _ in self._prompts]
        self._prompts = self._drafting = None
        self.draft.clear()
        return outcomes

    def _finished(self, votes: list[torch.Tensor | None]) -> list[Outcome]:
        assert self._prompts is not None
        assert self._drafting is not None
        prompts, cached = self._prompts, self._drafting.cached
        with self._timers["select"].span():
            chosen = self._select(prompts, [None if one is None else self._ranks.maximum(one) for one in votes])
        if chosen is None:
            return self._failed()
        self._drafting.release()
        self._prompts = self._drafting = None
        draft_ms, lookahead_ms, score_ms, select_ms = (timer.total_ms() for timer in self._timers.values())
        outcomes = [
            Outcome(
                positions=positions,
                draft_ms=draft_ms + lookahead_ms,
                score_ms=score_ms,
                select_ms=select_ms,
                draft_cached_tokens=already,
                cached_tokens=prompt.cached,
                scores=score,
            )
            for prompt, (positions, score), already in zip(prompts, chosen, cached, strict=True)
        ]
        if self._ranks.is_first:
            tokens, kept = sum(len(prompt.ids) for prompt in prompts), sum(len(positions) for positions, _ in chosen)
            logger.info(
                "Spec prefill batch, #prompt: %d, #token: %d, #draft-cached-token: %d, #kept-token: %d, "
                "draft ms: %.1f, lookahead ms: %.1f, score ms: %.1f, select ms: %.1f",
                *(len(prompts), tokens, sum(cached), kept),
                *(draft_ms, lookahead_ms, score_ms, select_ms),
            )
        return outcomes

    def _select(
        self, prompts: Sequence[Prompt], votes: Sequence[torch.Tensor | None]
    ) -> list[tuple[np.ndarray, np.ndarray | None]] | None:
        """Rank 0's kept positions and scores per prompt, None if it failed; a cancelled prompt keeps nothing."""
        chosen: list[tuple[np.ndarray, np.ndarray | None]] | None = None
        if self._ranks.is_first:
            try:
                wanted = [(prompt, one) for prompt, one in zip(prompts, votes, strict=True) if one is not None]
                found = iter(self._selected(wanted))
                chosen = [(np.arange(0), None) if one is None else next(found) for one in votes]
            except Exception:
                logger.exception("Speculative prefill: selection failed; %d prompts are prefilled dense.", len(prompts))
        return self._ranks.from_first(chosen)

    def _selected(self, voted: Sequence[tuple[Prompt, torch.Tensor]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Kept positions and scores of prompts with their votes."""
        best = select(
            [chunk_scores(votes, self.config.chunk_size) for _, votes in voted],
            [self._forced(prompt) for prompt, _ in voted],
            [prompt.keep_ratio for prompt, _ in voted],
        )
        return [(self._positions(prompt, *one), one.scores) for (prompt, _), one in zip(voted, best, strict=True)]

    def _positions(self, prompt: Prompt, chunks: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The best chunks; what an earlier turn kept comes before them, what is cached undropped is not paid for."""
        size = self.config.chunk_size
        positions = selection.chunk_positions(chunks, len(prompt.ids), size)
        free = prompt.cached if prompt.kept is None else selection.leading_run(prompt.kept)
        if selection.leading_run(positions) < free:
            after = selection.select_after(free // size, scores, self._forced(prompt), prompt.keep_ratio)
            after = np.union1d(np.arange(free), selection.chunk_positions(after, len(prompt.ids), size))
            positions = after if prompt.kept is None else np.union1d(positions, after)
        return positions if prompt.kept is None else np.concatenate([prompt.kept, np.setdiff1d(positions, prompt.kept)])

    def _forced(self, prompt: Prompt) -> np.ndarray:
        return selection.forced_chunks(
            len(prompt.ids),
            chunk_size=self.config.chunk_size,
            keep_first=self.config.keep_first,
            keep_last=prompt.keep_last,
            protect=prompt.protect,
        )


def _settings(prompt: Prompt) -> tuple:
    """What the selection depends on besides the ids."""
    return prompt.keep_ratio, prompt.keep_last, prompt.protect
