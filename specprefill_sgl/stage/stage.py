"""The speculation stage: prompts in, kept positions or a reason out. The only place that drives a method."""

import logging
from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.methods.protocol import Method, Pass
from specprefill_sgl.models.ranks import Ranks
from specprefill_sgl.models.sizes import MAX_PROMPTS
from specprefill_sgl.observability.timer import DeviceTimer
from specprefill_sgl.request import eligibility
from specprefill_sgl.request.prompts import Cast, Outcome, Predicted, Prompt
from specprefill_sgl.request.turns import Turn, Turns
from specprefill_sgl.selection.budget import keeps_everything
from specprefill_sgl.stage.reconsidering import Reconsidered, is_evicted, reconsidered, without_draft
from specprefill_sgl.stage.selecting import Selected, join, select_each

logger = logging.getLogger(__name__)


class Stage:
    """Drafts, scores and selects for groups of prompts, the same on every rank.

    Parameters
    ----------
    config : SpecPrefillConfig
    methods : mapping of str to Method
        Those that are loaded, by name.
    ranks : Ranks
        The tensor-parallel ranks.
    window : int
        Tokens that the target's windowed layers look back on; 0 if it has none.
    after_snapshot : int
        Most tokens of a finished request that follow the last snapshot of a hybrid target's recurrent state; else 0.
    """

    def __init__(
        self, config: SpecPrefillConfig, methods: Mapping[str, Method], ranks: Ranks, *, window: int, after_snapshot: int
    ):
        self.config, self.methods, self.window, self.after_snapshot = config, methods, window, after_snapshot
        self._ranks = ranks
        self.turns = Turns()
        self.whole_turns = Turns()  # of hybrid targets; apart, so that they never push out what was drafted
        self.may_revive = bool(config.revive_every)  # whether any request so far may
        self._prompts: list[Prompt] | None = None  # of the group in progress
        self._pass: Pass | None = None

    def without_reading(self, prompt: Prompt) -> Outcome | None:
        """The outcome of a prompt that need not be drafted, or cannot be; None if it must."""
        n_tokens = len(prompt.ids)
        turn = None if prompt.return_votes else self.turns.repeated(prompt.ids, prompt.settings, prompt.namespace)
        if turn is not None:
            read = len(prompt.read_ids)
            return Outcome(positions=turn.positions, draft_tokens=read, draft_cached_tokens=read, scores=turn.scores)
        if prompt.kept is None and prompt.cached and n_tokens - prompt.cached < prompt.min_tokens:
            return Outcome(positions=None, reason=eligibility.PREFIX_CACHED, cached_tokens=prompt.cached)
        if keeps_everything(prompt.cut, prompt.keep_ratio, prompt.rule.budget_unit):
            return Outcome(positions=np.arange(n_tokens))
        method = self.methods[prompt.method]
        if (reason := method.refuses(prompt)) is not None:
            return Outcome(positions=None, reason=reason)
        return Outcome(positions=np.arange(n_tokens), inside=True) if method.is_inside else None

    def warm_up(self, method: str) -> bool:
        """Read a made-up prompt, so that no request waits for kernels to be compiled; whether the method can do it."""
        if self.methods[method].is_inside:
            return True
        rule = self.methods[method].adapted(self.config.rule_for(self.config.selection, method))
        room = self.methods[method].longest - rule.lookahead
        ids = array("q", bytes(8 * max(1, min(4 * rule.chunk_size + rule.window, room))))
        self.begin([Prompt(ids=ids, keep_ratio=self.config.keep_ratio, rule=rule, method=method)])
        while (outcomes := self.advance()) is None:
            pass
        self.clear()
        return outcomes[0].positions is not None

    def group_size(self, prompts: Sequence[Prompt]) -> int:
        """How many of the waiting prompts, in order, are drafted together.

        Always one; more while they fit one forward and are selected from by the same method and rule.
        """
        method = self.methods[prompts[0].method]
        tokens = slots = 0
        for size, prompt in enumerate(prompts[:MAX_PROMPTS]):
            tokens += len(prompt.answer) or len(prompt.read_ids)  # of a prompt with an answer, the keys are there
            slots += method.tokens_needed(prompt)
            fits = tokens <= method.chunk_tokens and slots <= method.max_tokens
            alike = (prompt.method, prompt.rule) == (prompts[0].method, prompts[0].rule)
            if size and not (fits and alike):
                return size
        return min(len(prompts), MAX_PROMPTS)

    def remember(self, prompt: Prompt, outcome: Outcome) -> Turn:
        """Keep what was selected, for the same prompt again and, once the turn has an answer, for the turn after it."""
        assert outcome.positions is not None
        turn = Turn(
            ids=prompt.ids,
            positions=outcome.positions,
            settings=prompt.settings,
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
        self._prompts, self._pass = list(prompts), None
        self._method = self.methods[prompts[0].method]
        stages = ("draft", "lookahead", "score", "select")
        self._timers = {name: DeviceTimer(self._method.device, f"spec_prefill.{name}") for name in stages}

    @property
    def chunk_tokens(self) -> int:
        """Longer prompts take more than one forward of some method."""
        return min(method.chunk_tokens for method in self.methods.values())

    def used_tokens(self) -> int:
        """Slots in use of all methods' pools."""
        return sum(method.used_tokens() for method in self.methods.values())

    @property
    def is_drafting(self) -> bool:
        """Whether a group is in progress."""
        return self._prompts is not None

    def cancel(self, index: int) -> None:
        """A prompt of the group that is not wanted any more."""
        if self._pass is not None:
            self._pass.cancel(index)

    def advance(self) -> list[Outcome] | None:
        """One draft forward; the group's outcomes once it is done, else None.

        Never raises for a failing draft: all prompts of the group become dense, on all ranks, and the draft's cache is emptied.
        """
        assert self._prompts is not None
        casts: Sequence[Cast | Predicted | None] | None = None
        error: str | None = None
        try:
            self._timers["draft"].keep_up()
            if self._pass is None:
                self._pass = self._method.begin(self._prompts)
                self._leave_out_what_is_evicted()
            with self._timers["lookahead" if self._pass.has_read else "draft"].span():
                done = self._pass.step()
            if done:
                with self._timers["score"].span():
                    casts = self._pass.votes()
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
            logger.exception("Speculative prefill: the draft failed; %s.", without_draft(self._prompts))
        if self._ranks.any_error(error) is not None:
            return self._failed()
        return None if casts is None else self._finished(casts)

    def reconsider(self, prompts: Sequence[Prompt]) -> list[Reconsidered]:
        """What running requests should have kept, by their answers so far.

        Of prompts of one method and rule that fit together (`group_size`); at once, since each is a forward of a few tokens.
        """
        self.begin(prompts)
        while (outcomes := self.advance()) is None:
            pass
        return [reconsidered(prompt, outcome) for prompt, outcome in zip(prompts, outcomes, strict=True)]

    def _leave_out_what_is_evicted(self) -> None:
        assert self._prompts is not None
        assert self._pass is not None
        for index, (prompt, cached) in enumerate(zip(self._prompts, self._pass.cached, strict=True)):
            if is_evicted(prompt, cached):
                self._pass.cancel(index)

    def drop(self) -> None:
        """Give up the group in progress; what it has read stays cached."""
        if self._pass is not None:
            self._pass.release()
        self._prompts = self._pass = None

    def clear(self) -> None:
        """Drop the group in progress and everything the methods remember."""
        self._prompts = self._pass = None
        self.turns.clear()
        self.whole_turns.clear()
        for method in self.methods.values():
            method.clear()

    def _failed(self) -> list[Outcome]:
        assert self._prompts is not None
        outcomes = [Outcome(positions=None, reason=eligibility.DRAFT_ERROR) for _ in self._prompts]
        self._prompts = self._pass = None
        self._method.clear()
        return outcomes

    def _finished(self, casts: Sequence[Cast | Predicted | None]) -> list[Outcome]:
        assert self._prompts is not None
        assert self._pass is not None
        prompts, cached = self._prompts, self._pass.cached
        with self._timers["select"].span():
            chosen = self._select(prompts, casts)
        if chosen is None:
            return self._failed()
        self._pass.release()
        self._prompts = self._pass = None
        draft_ms, lookahead_ms, score_ms, select_ms = (timer.total_ms() for timer in self._timers.values())
        outcomes = [
            Outcome(
                positions=one.positions,
                draft_ms=draft_ms + lookahead_ms,
                score_ms=score_ms,
                select_ms=select_ms,
                tokenize_ms=0.0 if prompt.reading is None else prompt.reading.milliseconds,
                draft_tokens=len(prompt.read_ids),
                draft_cached_tokens=already,
                cached_tokens=0 if one.predicted else prompt.cached,  # under the prompt's own ids, which it then has not
                predicted=one.predicted,
                scores=one.scores,
                votes=one.votes,
            )
            for prompt, one, already in zip(prompts, chosen, cached, strict=True)
        ]
        if self._ranks.is_first:
            tokens, kept = sum(len(prompt.read_ids) for prompt in prompts), sum(len(one.positions) for one in chosen)
            logger.log(
                logging.DEBUG if prompts[0].answer else logging.INFO,
                "Spec prefill batch, method: %s, #prompt: %d, #token: %d, #draft-cached-token: %d, #kept-token: %d, "
                "draft ms: %.1f, lookahead ms: %.1f, score ms: %.1f, select ms: %.1f",
                *(self._method.name, len(prompts), tokens, sum(cached), kept),
                *(draft_ms, lookahead_ms, score_ms, select_ms),
            )
        return outcomes

    def _select(self, prompts: list[Prompt], casts: Sequence[Cast | Predicted | None]) -> list[Selected] | None:
        """What rank 0 selects of each prompt, None if it failed; of a cancelled prompt nothing."""
        assert self._pass is not None
        chosen: list[Selected] | None = None
        try:
            joined = join(self._pass, casts)
            if self._ranks.is_first:
                chosen = select_each(prompts, joined)
        except Exception:
            what = without_draft(prompts) if self._ranks.is_first else "the first rank's counts"
            logger.exception("Speculative prefill: selection failed; %s.", what)
        return self._ranks.from_first(chosen)
