"""LazyLLM as a method: nothing is read ahead, tokens are dropped inside the target's own forward, and may return."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.methods.layers import check_layers
from specprefill_sgl.methods.lazy.aux_cache import AuxCache
from specprefill_sgl.methods.lazy.chooser import Chooser, Select, exponents
from specprefill_sgl.methods.lazy.forward import Forward
from specprefill_sgl.methods.lazy.heads import check_heads, unheard
from specprefill_sgl.methods.lazy.segments import Segments
from specprefill_sgl.models.ranks import Ranks
from specprefill_sgl.request import eligibility
from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.selection.first_layers import of_last_tokens

logger = logging.getLogger(__name__)


def refusals(server_args: Any) -> Iterator[str]:
    """In the launcher: a sentence for each of the server's options that it does not go with."""
    return compat.lazy_refusals(server_args)


def check_at_start(config: SpecPrefillConfig, _server_args: Any, target: Any) -> None:
    """In the launcher: the layers are the target's, which can be run in parts; of the calibrated heads some vote.

    Raises
    ------
    ConfigError
        One sentence that names the flag.
    """
    check_layers(config, target)
    compat.check_lazy(target)
    check_heads(config, target)


def model_path(_config: SpecPrefillConfig, server_args: Any) -> str:
    """The target, whose heads vote."""
    return server_args.model_path


def more_memory(config: SpecPrefillConfig, target: Any) -> list[str]:
    """In the launcher: what dropped tokens wait in."""
    most, token = config.aux_cache_bytes / 2**20, token_bytes(target) / 2**10
    return [f"states of tokens that wait: at most {most:.0f} MiB, {token:.1f} KiB each"]


def token_bytes(target: Any) -> int:
    """Of one hidden state, of a ModelConfig; every rank has all of it."""
    return target.hidden_size * target.dtype.itemsize


def load(name: str, config: SpecPrefillConfig, scheduler: Any, ranks: Ranks, chunk_tokens: int) -> "Lazy":
    """Nothing yet: the target's pools are still to come."""
    for sentence in unheard(config):
        logger.warning("--spec-prefill: %s", sentence)
    return Lazy(name, config, scheduler.tp_worker.model_runner, ranks, chunk_tokens)


class Lazy:
    """See `methods.protocol.Method`; of what reads ahead it has nothing.

    Parameters
    ----------
    name : str
    config : SpecPrefillConfig
    runner : ModelRunner
        The target's.
    ranks : Ranks
    chunk_tokens : int

    Attributes
    ----------
    aux_cache : AuxCache
    stages : int
        How many layers there are from which on tokens are dropped.
    """

    is_inside = True
    adapted = staticmethod(of_last_tokens)

    def __init__(self, name: str, config: SpecPrefillConfig, runner: Any, ranks: Ranks, chunk_tokens: int):
        assert config.layers is not None
        self.name, self.described, self.chunk_tokens = name, f"{flag('method')} {name}", chunk_tokens
        self.layers, self.stages = config.layers, len(config.layers)
        self.aux_cache = AuxCache(config.aux_cache_bytes)
        self._config, self._runner, self._ranks = config, runner, ranks
        model = runner.model_config
        self._bounds = (0, *config.layers, model.num_hidden_layers)
        self._token_bytes = token_bytes(model)
        self._own_rows = 0

    def widen_table(self) -> None:
        """Rows for each stage behind SGLang's own of the request table; before attention backends look at it."""
        pool = self._runner.req_to_token_pool
        self._own_rows, width = pool.req_to_token.shape
        pool.req_to_token = pool.req_to_token.new_zeros((1 + self.stages) * self._own_rows, width)
        self._runner.init_kv_index_translator()

    def forward(self, select: Select, on_pruned: Callable[..., None], on_asked: Callable[[int], None]) -> Forward:
        """The target's forward of batches with lazy requests; once its attention backend is built.

        Raises
        ------
        ConfigError
            If the target cannot be run in parts.
        """
        try:
            segments = Segments(self._runner, self._bounds)
        except ValueError as error:
            raise ConfigError(f"{self.described} cannot be used with this target: {error}.") from error
        powers = exponents(self._config.keep_by_layer, self.stages)
        chooser = Chooser(self._runner, segments, self._bounds, powers, self._ranks, select)
        table = self._runner.req_to_token_pool.req_to_token
        return Forward(table, self._own_rows, self.stages, segments, chooser, self.aux_cache, on_pruned, on_asked)

    @property
    def max_tokens(self) -> int:
        """Hidden states that may be parked."""
        return self._config.aux_cache_bytes // self._token_bytes

    @property
    def longest(self) -> int:
        """What may be parked while it is read."""
        return self.max_tokens

    @property
    def device(self) -> torch.device:
        """The target's."""
        return torch.device(self._runner.device)

    def init_attention_backend(self) -> None:
        """The target's own."""

    def init_runner(self) -> None:
        """The target's own."""

    def check(self) -> None:
        """Nothing of it can be known better now."""

    def refuses(self, prompt: Prompt) -> str | None:
        """What cannot be parked while it is read."""
        return eligibility.AUX_CACHE if len(prompt.ids) > self.max_tokens else None

    def tokens_needed(self, prompt: Prompt) -> int:
        """Hidden states while it is read."""
        return len(prompt.ids)

    def begin(self, prompts: Sequence[Prompt]) -> NoReturn:
        """It reads nothing ahead."""
        raise AssertionError(f"{len(prompts)} prompts were to be read by {self.described}")

    def clear(self) -> None:
        """Of requests that ended; others hold what they need."""
        self.aux_cache.sweep()

    def usage(self) -> Mapping[str, int]:
        """Of the Aux Cache."""
        self.aux_cache.sweep()
        return {"aux_cache_bytes": self.aux_cache.n_bytes, "aux_cache_max_bytes": self.aux_cache.max_bytes}

    def used_tokens(self) -> int:
        """It has no pool."""
        return 0
