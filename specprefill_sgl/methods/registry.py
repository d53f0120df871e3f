"""The methods there are, by name: how each is loaded and which flags it reads."""

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.methods.kv_prediction import WARNING as KV_PREDICTION_WARNING
from specprefill_sgl.methods.own_tokens import OwnTokens
from specprefill_sgl.methods.protocol import Method, Planned
from specprefill_sgl.models.ranks import Ranks


class Entry(NamedTuple):
    """A method before it is loaded.

    Attributes
    ----------
    module : str
        With `check_at_start(config, server_args, target)` and `model_path(config, server_args)`, called in the launcher, and
        `load(name, config, scheduler, ranks, chunk_tokens)`. If it has a model: `planned(config, server_args, target)`. If it
        takes other memory: `more_memory(config, target)`. If it may have a tokenizer of its own: `token_reader(config,
        server_args)`, called in the front end. If it does not go with everything that other methods go with:
        `refusals(server_args)`, sentences.
    needs : tuple of str
        Fields of `SpecPrefillConfig` that must be given.
    reads : tuple of str
        Fields that have no effect without it, those it needs included; of those a request may give too.
    warning : str
        What whoever loads it must know; said by `check` and in the log.
    """

    module: str
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    warning: str = ""

    @property
    def code(self) -> Any:
        """The module, imported on first use: the launcher's process stays light."""
        return importlib.import_module(self.module)


_REVIVE = ("revive_every", "revive_chunks", "revive_max")
_BACKFILL = ("backfill", "backfill_tokens", "backfill_decodes")
_OF_MODELS = ("heads", "draft_max_tokens", *_REVIVE, *_BACKFILL)
METHODS: dict[str, Entry] = {
    "draft": Entry(
        "specprefill_sgl.methods.draft", needs=("draft_model_path",), reads=("draft_model_path", "draft_tokenizer", *_OF_MODELS)
    ),
    "lazy": Entry(
        "specprefill_sgl.methods.lazy.method",
        needs=("layers",),
        # no backfill: its layers lack different tokens
        reads=("layers", "keep_by_layer", "aux_cache_bytes", "heads", *_REVIVE),
    ),
    "early-layers": Entry("specprefill_sgl.methods.early_layers", needs=("layers",), reads=("layers", *_OF_MODELS)),
    "kv-prediction": Entry(
        "specprefill_sgl.methods.kv_prediction.entry",
        needs=("predictor",),
        reads=("predictor", "tail", "draft_model_path", "draft_max_tokens", *_BACKFILL),
        warning=KV_PREDICTION_WARNING,
    ),
}


def check(config: SpecPrefillConfig, *, loads: bool = True) -> None:
    """Refuse unknown methods, a method that is loaded without what it needs, and flags that no method reads.

    Raises
    ------
    ConfigError
        Names the flag.
    """
    wanted = flag("method")
    for name in config.method:
        if name not in METHODS:
            raise ConfigError(f"{wanted} {name} is unknown; known are {', '.join(METHODS)}.")
        for field in METHODS[name].needs if loads else ():
            if getattr(config, field) is None:
                raise ConfigError(f"{wanted} {name} needs {flag(field)}.")
    loaded = [METHODS[name] for name in config.method]
    defaults = {field.name: field.default for field in msgspec.structs.fields(config)}
    for field in {field: None for entry in METHODS.values() for field in entry.reads}:
        if getattr(config, field) != defaults[field] and not any(field in entry.reads for entry in loaded):
            raise ConfigError(f"{flag(field)} has no effect with {wanted} {','.join(config.method)}.")


def refusals(config: SpecPrefillConfig, server_args: Any) -> Iterator[str]:
    """In the launcher: a sentence for each of the server's options that the configuration cannot be combined with."""
    for field, option, why in compat.cannot_use(config, server_args):
        yield f"{flag(field)} cannot be combined with {option}: {why}."
    for name in _loaded(config, server_args):
        if (of_method := getattr(METHODS[name].code, "refusals", None)) is not None:
            yield from of_method(server_args)


def warnings(config: SpecPrefillConfig, server_args: Any) -> Iterator[str]:
    """A sentence for each loaded method that asks for care."""
    return (METHODS[name].warning for name in _loaded(config, server_args) if METHODS[name].warning)


def _loaded(config: SpecPrefillConfig, server_args: Any) -> tuple[str, ...]:
    """The methods a server loads: none where only answers are computed."""
    return config.method if compat.reads_prompts(server_args) else ()


def check_at_start(config: SpecPrefillConfig, server_args: Any, target: Any) -> tuple[str, ...]:
    """In the launcher: what each method refuses, beside `check`; of the others those that are `forgetful`."""
    for sentence in refusals(config, server_args):
        raise ConfigError(sentence)
    for name in _loaded(config, server_args):
        METHODS[name].code.check_at_start(config, server_args, target)
    lost = forgetful(config, server_args, target)
    for name, option in lost.items():
        if config.revive_every:
            raise ConfigError(
                f"{flag('revive_every')} cannot be combined with {option} and {flag('method')} {name}: recurrent states "
                "are cached in pages of one token only, so that it would read the whole prompt again."
            )
    return tuple(lost)


def forgetful(config: SpecPrefillConfig, server_args: Any, target: Any) -> dict[str, str]:
    """Methods whose reader has lost a prompt by the time it is answered, and the server's option that is why."""
    readers = planned(config, server_args, target)
    options = {name: compat.cannot_resume(server_args, reader.model) for name, reader in readers.items()}
    return {name: option for name, option in options.items() if option is not None}


def model_paths(config: SpecPrefillConfig, server_args: Any) -> dict[str, str]:
    """The model of each method that has one, whose heads may be calibrated."""
    paths = {name: METHODS[name].code.model_path(config, server_args) for name in _loaded(config, server_args)}
    return {name: path for name, path in paths.items() if path is not None}


def load(config: SpecPrefillConfig, scheduler: Any, ranks: Ranks, chunk_tokens: int) -> dict[str, Method]:
    """In a scheduler: the methods by name, in the order of `--spec-prefill-method`."""
    names = _loaded(config, scheduler.server_args)
    return {name: METHODS[name].code.load(name, config, scheduler, ranks, chunk_tokens) for name in names}


def planned(config: SpecPrefillConfig, server_args: Any, target: Any) -> dict[str, Planned]:
    """Without loading anything: the models of the methods that have one."""
    makers = {name: getattr(METHODS[name].code, "planned", None) for name in _loaded(config, server_args)}
    return {name: make(config, server_args, target) for name, make in makers.items() if make is not None}


def more_memory(config: SpecPrefillConfig, server_args: Any, target: Any) -> dict[str, list[str]]:
    """Without loading anything: what methods take besides models, in words."""
    makers = {name: getattr(METHODS[name].code, "more_memory", None) for name in _loaded(config, server_args)}
    return {name: make(config, target) for name, make in makers.items() if make is not None}


def token_readers(config: SpecPrefillConfig, server_args: Any) -> dict[str, OwnTokens]:
    """In the front end: who makes a method's own tokens of a prompt, for methods that do not read the target's."""
    makers = {name: getattr(METHODS[name].code, "token_reader", None) for name in _loaded(config, server_args)}
    made = {name: make(config, server_args) for name, make in makers.items() if make is not None}
    return {name: reader for name, reader in made.items() if reader is not None}
