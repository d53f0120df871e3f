"""Prompts through an auxiliary model, then their predicted KV into the target's radix cache."""

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from specprefill_sgl.methods.kv_prediction.publish import Publisher
from specprefill_sgl.methods.kv_prediction.writer import Writer
from specprefill_sgl.methods.model_method import ModelMethod
from specprefill_sgl.models.private import PrivateModel
from specprefill_sgl.models.ranks import Ranks
from specprefill_sgl.models.recording import Recording
from specprefill_sgl.request import eligibility, skipcode
from specprefill_sgl.request.prompts import Cast, Predicted, Prompt
from specprefill_sgl.selection.rule import Rule


class KvPrediction(ModelMethod):
    """See `methods.protocol.Method`; nothing is chosen.

    Parameters
    ----------
    of_the_model
        As `ModelMethod` takes them, of the auxiliary model.
    publisher : Publisher
    writer : Writer
    """

    def __init__(self, *of_the_model: Any, publisher: Publisher, writer: Writer):
        super().__init__(*of_the_model)
        self._publisher, self._writer = publisher, writer
        self._is_outdated = False

    @staticmethod
    def adapted(rule: Rule) -> Rule:
        """Nobody votes: the model only reads."""
        return msgspec.structs.replace(rule, lookahead=1, window=0, window_votes="pooled", heads=None)

    def check(self) -> None:
        """It has no heads to check."""

    def refuses(self, prompt: Prompt) -> str | None:
        """What the auxiliary model cannot read; everything, once the target has other weights."""
        return eligibility.PREDICTOR_OUTDATED if self._is_outdated else super().refuses(prompt)

    def weights_changed(self) -> None:
        """The target has other weights than the predictor was trained for."""
        self._is_outdated = True

    def begin(self, prompts: Sequence[Prompt]) -> "PredictionPass":  # type: ignore[override]
        """Prompts of one rule."""
        return PredictionPass(self._model, prompts, self._ranks, self._config.tail, self._publisher, self._writer)


class PredictionPass:
    """See `methods.protocol.Pass`: forwards of the auxiliary model, then a step for each prompt's KV."""

    def __init__(
        self, model: PrivateModel, prompts: Sequence[Prompt], ranks: Ranks, tail: int, publisher: Publisher, writer: Writer
    ):
        self._model, self._prompts, self._ranks, self._tail = model, prompts, ranks, tail
        self._publisher, self._writer = publisher, writer
        self._group = model.begin(prompts)
        self._read: list[Recording | None] | None = None  # once all are
        self._done: list[Predicted | None] = []
        self.cached = self._group.cached

    @property
    def has_read(self) -> bool:
        """Whether prompts are being predicted."""
        return self._group.has_read

    def step(self) -> bool:
        """One forward, or the KV of one prompt, for which there may be no room yet."""
        if self._read is None:
            if self._group.step():
                self._read = self._group.drafted()
            return False
        recording, prompt = self._read[len(self._done)], self._prompts[len(self._done)]
        tokens = 0 if recording is None else self._predictable(prompt)
        if tokens and not self._publisher.has_room(tokens):
            if self._publisher.room_will_come():
                return False
            raise RuntimeError(f"the target's pool has no room for {tokens} tokens")
        if tokens:
            assert recording is not None
            self._predict(prompt, recording, tokens)
        self._done.append(None if recording is None else Predicted(tokens))
        return len(self._done) == len(self._prompts)

    def _predictable(self, prompt: Prompt) -> int:
        """All but the tail, whole pages."""
        page, is_ready = self._publisher.page_size, self._publisher.is_ready
        return max(len(prompt.ids) - self._tail, 0) // page * page if is_ready else 0

    def _predict(self, prompt: Prompt, recording: Recording, tokens: int) -> None:
        """Nothing is published that not every rank has written: their caches must hold the same."""
        codes = array("q", (token | skipcode.PREDICTED for token in prompt.ids[:tokens]))
        prefix = self._publisher.allocate(codes, prompt.namespace)
        error: str | None = None
        try:
            if prefix.slots is not None:
                self._writer.write(recording.slots, prefix.cached, prefix.slots)
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
        if (failed := self._ranks.any_error(error)) is not None:
            self._publisher.give_back(prefix)
            raise RuntimeError(failed)
        self._publisher.publish(prefix)

    def cancel(self, index: int) -> None:
        """A prompt that is not wanted any more."""
        self._group.cancel(index)
        if self._read is not None:
            self._read[index] = None

    def votes(self) -> list[Predicted | None]:
        """Of each prompt, what is in the radix cache."""
        return self._done

    def joined(self, cast: Cast) -> Cast:
        """There are no votes."""
        return cast

    def release(self) -> None:
        """Give back what the group holds."""
        self._group.release()
