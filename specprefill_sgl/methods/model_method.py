"""A method whose votes are a private model's attention."""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.methods.model_pass import ModelPass
from specprefill_sgl.models.private import PrivateModel
from specprefill_sgl.models.ranks import Ranks
from specprefill_sgl.request import eligibility
from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.request.skipcode import as_numpy
from specprefill_sgl.scoring.triton_scoring import MAX_HEAD_DIM, kernels_can
from specprefill_sgl.selection.rule import Rule

logger = logging.getLogger(__name__)


class ModelMethod:
    """See `methods.protocol.Method`.

    Parameters
    ----------
    name, described : str
        What the flag of the methods and what messages call it.
    model : PrivateModel
    ranks : Ranks
        The tensor-parallel ranks that the model's heads are split over.
    config : SpecPrefillConfig
    model_config : ModelConfig
        The model's. A prompt with ids beyond its vocabulary is prefilled dense.
    own_tokens : bool
        Whether it reads prompts in a tokenizer of its own; one that comes without such a reading is prefilled dense.
    """

    is_inside = False

    def __init__(
        self,
        name: str,
        described: str,
        model: PrivateModel,
        ranks: Ranks,
        config: SpecPrefillConfig,
        model_config: Any,
        *,
        own_tokens: bool = False,
    ):
        self.name, self.described, self.chunk_tokens = name, described, model.chunk_tokens
        self._model, self._ranks, self._config, self._own_tokens = model, ranks, config, own_tokens
        self._vocab_size = model_config.vocab_size
        rule = self.adapted(config.rule_for(config.selection, name))
        self._warn(rule, compat.key_dim(model_config))

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

    @staticmethod
    def adapted(rule: Rule) -> Rule:
        """As it is."""
        return rule

    def _warn(self, rule: Rule, key_dim: int) -> None:
        if self.device.type == "cuda" and not kernels_can(rule.pool_kernel, key_dim):
            logger.warning(
                "--spec-prefill: plain torch computes the scores of %s, slower than the kernels, which take heads up to %d.",
                self.name,
                MAX_HEAD_DIM,
            )
        longest = self.longest - rule.lookahead
        if longest < self._config.min_tokens:
            logger.warning(
                "--spec-prefill: %s has room for prompts of %d tokens; only requests that lower %s, %d, can be sparse.",
                self.name,
                longest,
                flag("min_tokens"),
                self._config.min_tokens,
            )

    def refuses(self, prompt: Prompt) -> str | None:
        """What the model cannot read."""
        if self._own_tokens and prompt.reading is None:
            return eligibility.DRAFT_TEXT
        if len(prompt.read_ids) + len(prompt.answer) + prompt.rule.lookahead > self._model.context_len:
            return eligibility.DRAFT_CONTEXT
        if self.tokens_needed(prompt) > self.max_tokens:
            return eligibility.DRAFT_POOL
        if max(as_numpy(prompt.read_ids).max(), *prompt.answer, 0) >= self._vocab_size:
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
