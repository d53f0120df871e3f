"""A method whose votes are a private model's attention."""

from collections.abc import Sequence

import torch

from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.methods.model_pass import ModelPass
from specprefill_sgl.models.private import PrivateModel
from specprefill_sgl.models.ranks import Ranks
from specprefill_sgl.request import eligibility
from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.request.skipcode import as_numpy
from specprefill_sgl.selection.rule import Rule


class ModelMethod:
    """See `methods.protocol.Method`.

    Parameters
    ----------
    name : str
    model : PrivateModel
    ranks : Ranks
        The tensor-parallel ranks that the model's heads are split over.
    config : SpecPrefillConfig
    vocab_size : int
        The model's; a prompt with other ids is prefilled dense.
    """

    def __init__(self, name: str, model: PrivateModel, ranks: Ranks, config: SpecPrefillConfig, *, vocab_size: int):
        self.name, self.chunk_tokens = name, model.chunk_tokens
        self._model, self._ranks, self._config, self._vocab_size = model, ranks, config, vocab_size

    @property
    def max_tokens(self) -> int:
        """Slots of the model's KV pool."""
        return self._model.max_tokens

    @property
    def longest(self) -> int:
        """What context and pool hold, lookahead included."""
        return min(self._model.context_len, self._model.max_tokens)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._model.device

    def init_attention_backend(self) -> None:
        """The model's own."""
        self._model.init_attention_backend()

    def init_runner(self) -> None:
        """The model's own."""
        self._model.init_runner()

    def check(self) -> None:
        """The calibrated heads are heads of this model that see the whole prompt.

        Raises
        ------
        ConfigError
            Names the flag of the heads.
        """
        heads = self._config.calibrated.get(self.name)
        if heads is not None and (why := self._model.cannot_vote(heads, self._ranks.size)):
            raise ConfigError(f"{flag('heads')} {','.join(self._config.heads)} cannot be used: {why}.")

    def adapted(self, rule: Rule) -> Rule:
        """As it is."""
        return rule

    def refuses(self, prompt: Prompt) -> str | None:
        """What the model cannot read."""
        if len(prompt.ids) + prompt.rule.lookahead > self._model.context_len:
            return eligibility.DRAFT_CONTEXT
        if self.tokens_needed(prompt) > self.max_tokens:
            return eligibility.DRAFT_POOL
        if as_numpy(prompt.ids).max() >= self._vocab_size:
            return eligibility.DRAFT_VOCABULARY
        return None

    def tokens_needed(self, prompt: Prompt) -> int:
        """KV slots, page rounding included."""
        return self._model.tokens_needed(prompt)

    def begin(self, prompts: Sequence[Prompt]) -> ModelPass:
        """Prompts of one rule."""
        return ModelPass(self._model, prompts, self._ranks)

    def clear(self) -> None:
        """Empty prefix cache and pools."""
        self._model.clear()

    def usage(self) -> dict[str, int]:
        """Of the model's pools."""
        return {
            "max_tokens": self.max_tokens,
            "available_tokens": self._model.available_tokens(),
            "cached_tokens": self._model.cached_tokens(),
            "available_requests": self._model.available_rows(),
            "context_len": self._model.context_len,
        }

    def used_tokens(self) -> int:
        """Slots in use, cached prompts included."""
        return self.max_tokens - self._model.free_tokens()
