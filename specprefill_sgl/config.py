"""Server configuration: flags beat the environment, the environment beats the file (docs/reference.md, Flags)."""

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

import msgspec

from specprefill_sgl.selection.rule import CHANGEABLE, MOST_LOOKAHEAD, Heads, Preset, Rule, expected, preset

ENVIRONMENT_VARIABLE = "SGLANG_SPEC_PREFILL_CONFIG"
PREFIX = "spec_prefill"
Backfill = Literal["off", "turn", "answer"]
_PATHS = ("draft_model_path", "predictor")
_FOUND_AT_START = {"calibrated", "forgetful"}  # nobody gives these

_LOWEST = {
    **{"min_tokens": 0, "tail": 1, "backlog": 1, "keep_first": 0, "keep_last": 0, "aux_cache_bytes": 1},
    **{"revive_every": 0, "revive_chunks": 1, "revive_max": 1, "backfill_tokens": 1, "backfill_decodes": 1},
}


class ConfigError(ValueError):
    """A configuration that cannot be served; the message is one sentence that names the flag."""


class SpecPrefillConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What `--spec-prefill` serves with. Lengths are in tokens; names are those of the flags.

    Attributes
    ----------
    method : tuple of str
        Who says which tokens matter, the first unless a request says otherwise (`methods.registry`); on the command line
        separated by commas.
    draft_model_path : str or None
        Hugging Face directory or name of the draft model.
    draft_tokenizer : {"target", "own"}
        Whose tokens the draft reads: the target's ids as they are, or the prompt's text in its own.
    keep_ratio : float
        Fraction of the prompt that is kept, in (0, 1] (docs/selection.md, 5).
    keep_min : float or None
        What the keep ratio may fall to under a backlog; None: it does not fall.
    backlog : int
        Waiting requests from which on it falls.
    min_tokens : int
        Prompts shorter than this are prefilled dense.
    selection : {"best", "paper"}
        The rule that chooses tokens; `lookahead` to `ignore_tail` change it, None leaves it as it is (`selection.rule.Rule`).
    layers : tuple of int or None
        Of the target: the first layers that read, of the method early-layers, one number; the layers from which on the method
        lazy drops tokens. On the command line separated by commas.
    keep_by_layer : tuple of float or None
        Of the method lazy, fractions of the prompt that are kept from each of these layers on; None: the last is the keep
        ratio, and all shrink by the same factor.
    aux_cache_bytes : int
        Of the method lazy, most bytes of hidden states that dropped tokens wait in, on each rank.
    predictor : str or None
        Folder of a predictor, from `python -m specprefill_sgl train-predictor`, of the method kv-prediction.
    tail : int
        Last prompt tokens whose KV that method does not predict.
    heads : tuple of str
        Files of calibrated heads, from `python -m specprefill_sgl calibrate`; on the command line separated by commas.
    calibrated : dict of str to tuple of (layer, head)
        What these list, by the method whose model they fit; read at start.
    forgetful : tuple of str
        Methods whose reader has no prefix cache, so that no answer can be asked what it lacks; found at start.
    revive_every : int
        Output tokens after which dropped tokens that the answer so far asks for return; 0: none return.
    revive_chunks : int
        At most so many chunks at a time.
    revive_max : int
        At most so many times a request.
    backfill : {"off", "turn", "answer"}
        Whether dropped tokens are prefilled when there is time: for the turn that may follow, or for the rest of the answer.
    backfill_tokens : int
        At most so many at a time.
    backfill_decodes : int or None
        Decodes between two times, while anything is decoded; None: one for the answer, 16 for the turn that may follow.
    keep_first : int
        Tokens at the start whose chunks are always kept.
    keep_last : int or None
        The same at the end; None: what the rule says, as far as an eighth of the budget holds it, or the target's sliding
        window, as far as half does.
    protect_roles : tuple of str
        Roles of chat messages that are kept whole; on the command line separated by commas.
    draft_max_tokens : int or None
        Size of the draft's KV pool; None: the draft's context plus the lookahead of one batch.
    """

    method: tuple[str, ...] = ("draft",)
    draft_model_path: str | None = None
    draft_tokenizer: Literal["target", "own"] = "target"
    keep_ratio: float = 0.2
    keep_min: float | None = None
    backlog: int = 8
    min_tokens: int = 1024
    selection: Preset = "best"
    layers: tuple[int, ...] | None = None
    keep_by_layer: tuple[float, ...] | None = None
    aux_cache_bytes: int = 2**30
    predictor: str | None = None
    tail: int = 32
    heads: tuple[str, ...] = ()
    calibrated: dict[str, Heads] = {}
    forgetful: tuple[str, ...] = ()
    lookahead: int | None = None
    window: int | None = None
    window_votes: Literal["pooled", "turns"] | None = None
    over_votes: Literal["mean", "max"] | None = None
    pool_kernel: int | None = None
    chunk_size: int | None = None
    budget_unit: Literal["chunks", "tokens"] | None = None
    ignore_first: int | None = None
    ignore_tail: bool | None = None
    revive_every: int = 0
    revive_chunks: int = 8
    revive_max: int = 8
    backfill: Backfill = "off"
    backfill_tokens: int = 256
    backfill_decodes: int | None = None
    keep_first: int = 0
    keep_last: int | None = None
    protect_roles: tuple[str, ...] = ()
    draft_max_tokens: int | None = None

    def decodes_between_pieces(self, mode: Backfill) -> int:
        """Of a backfill; a turn can wait for the pause before it."""
        return self.backfill_decodes or (1 if mode == "answer" else 16)

    @property
    def rule(self) -> Rule:
        """The rule of requests that ask for no other."""
        return self.rule_for(self.selection, self.method[0])

    def rule_for(self, name: Preset, method: str) -> Rule:
        """A preset with a method's heads; the server's own choice of settings belongs to its own preset."""
        rule = preset(name, self.calibrated.get(method), method)
        if name != self.selection:
            return rule
        changed = {field: value for field in CHANGEABLE if (value := getattr(self, field)) is not None}
        return msgspec.structs.replace(rule, **changed)

    @property
    def most_lookahead(self) -> int:
        """Of any rule a request may ask for."""
        return max(MOST_LOOKAHEAD, self.rule.lookahead)


def needs_radix_cache(settings: Any) -> list[str]:
    """Of a configuration's or a request's settings, those that are nothing without prompts in SGLang's radix cache."""
    off = {"revive_every": (None, 0), "backfill": (None, "off")}
    return [name for name, values in off.items() if getattr(settings, name) not in values]


def needs_queue(settings: Any) -> list[str]:
    """Of the same, those that send running requests back to the queue."""
    return [name for name in needs_radix_cache(settings) if getattr(settings, name) != "turn"]


def flag(name: str) -> str:
    """The command-line spelling of a field of `SpecPrefillConfig`."""
    return f"--{PREFIX}_{name}".replace("_", "-")


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> SpecPrefillConfig | None:
    """The configuration asked for, or None where Speculative Prefill is off.

    Parameters
    ----------
    flags : mapping
        Flags given on the command line, without the prefix; `enabled` is `--spec-prefill`, `config` the file.
    environ : mapping
        Environment; `SGLANG_SPEC_PREFILL_CONFIG` holds JSON or the path of a JSON file. Setting it switches
        Speculative Prefill on (it is the only switch `sglang.Engine` has) unless it says `"spec_prefill": false`.

    Raises
    ------
    ConfigError
        For an unreadable file, an unknown name, a wrong type or range, or settings without `--spec-prefill`.
    """
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    path = given.pop("config", None)
    from_file = _read(f"{flag('config')} {path}", _read_text(flag("config"), path)) if path is not None else {}
    text = environ.get(ENVIRONMENT_VARIABLE, "").strip()
    from_environment: dict[str, Any] = {}
    if text:
        source = text if text.startswith("{") else _read_text(ENVIRONMENT_VARIABLE, text)
        from_environment = {"enabled": True, **_read(ENVIRONMENT_VARIABLE, source)}
    merged = {**from_file, **from_environment, **given}
    enabled = merged.pop("enabled", False)
    if enabled not in (True, False):
        raise ConfigError(f"--spec-prefill must be true or false, got {enabled!r}.")
    if not enabled:
        if path is not None or given:
            name = "config" if path is not None else next(iter(given))
            raise ConfigError(f"{flag(name)} has no effect without --spec-prefill.")
        return None
    return _checked(merged)


def _read_text(source: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} {path} cannot be read: {getattr(error, 'strerror', error)}.") from None


def _read(source: str, text: str) -> dict[str, Any]:
    """A JSON object with the flags' names, dashes or underscores, prefix optional, as field names."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source} must hold a JSON object.")
    known = {*SpecPrefillConfig.__struct_fields__, "enabled"} - _FOUND_AT_START
    result = {}
    for key, value in values.items():
        name = key.removeprefix("--").replace("-", "_")
        name = "enabled" if name == PREFIX else name.removeprefix(PREFIX + "_")
        if name not in known:
            raise ConfigError(f"{source} has an unknown name: {key!r}.")
        result[name] = value
    return result


def _checked(values: dict[str, Any]) -> SpecPrefillConfig:
    for name in ("method", "protect_roles", "heads"):
        if isinstance(text := values.get(name), str):
            values = {**values, name: [one.strip() for one in text.split(",")]}
    for name, number in (("layers", int), ("keep_by_layer", float)):
        if name in values:
            values = {**values, name: _numbers(name, values[name], number)}
    if (text := values.get("ignore_tail")) in ("true", "false"):  # a command line's
        values = {**values, "ignore_tail": text == "true"}
    try:
        config = msgspec.convert(values, SpecPrefillConfig)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("$.")[2].rstrip("`") if "$." in str(error) else "config"
        raise ConfigError(f"{flag(field)}: {error}.") from None
    paths = {name: os.path.expanduser(path) for name in _PATHS if (path := getattr(config, name)) is not None}
    config = msgspec.structs.replace(config, **paths)
    if len(set(config.method)) < max(len(config.method), 1):
        _out_of_range("method", "names, each once", ",".join(config.method))
    if not (math.isfinite(config.keep_ratio) and 0 < config.keep_ratio <= 1):
        _out_of_range("keep_ratio", "in (0, 1]", config.keep_ratio)
    if config.keep_min is not None and not 0 < config.keep_min <= config.keep_ratio:
        _out_of_range("keep_min", f"in (0, {flag('keep_ratio')}]", config.keep_min)
    if config.layers is not None and not (config.layers and config.layers[0] >= 2 and _ascend(config.layers, below=2**31)):
        _out_of_range("layers", "at least 2, and ascend", ",".join(map(str, config.layers)))
    if config.keep_by_layer is not None:
        last = config.keep_by_layer[-1] if config.keep_by_layer else None
        shown = ",".join(map(str, config.keep_by_layer))
        if config.layers is None or len(config.keep_by_layer) != len(config.layers):
            _out_of_range("keep_by_layer", f"one number for each of {flag('layers')}", shown)
        if not _ascend((0.0, *reversed(config.keep_by_layer)), below=1.0):
            _out_of_range("keep_by_layer", "in (0, 1), and descend", shown)
        assert last is not None
        if "keep_ratio" not in values:
            config = msgspec.structs.replace(config, keep_ratio=last)
        elif config.keep_ratio != last:
            _out_of_range("keep_by_layer", f"{flag('keep_ratio')} {config.keep_ratio} at the last layer", shown)
    for name, lowest in _LOWEST.items():
        if (value := getattr(config, name)) is not None and not lowest <= value < 2**31:
            _out_of_range(name, f"at least {lowest}", value)
    for name in CHANGEABLE:
        if (value := getattr(config, name)) is not None and (wanted := expected(name, value)) is not None:
            _out_of_range(name, wanted, value)
    if not all(config.protect_roles):
        _out_of_range("protect_roles", "roles separated by commas", ",".join(config.protect_roles))
    if config.draft_max_tokens is not None and config.draft_max_tokens <= config.most_lookahead:
        _out_of_range("draft_max_tokens", f"more than {config.most_lookahead}", config.draft_max_tokens)
    return config


def _numbers(name: str, value: Any, kind: Callable[[str], float]) -> Any:
    """A list of one number, or of those in a command line's text; what is neither is left to be refused."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, str):
        return value
    try:
        return [kind(one) for one in value.split(",")]
    except ValueError:
        _out_of_range(name, "numbers separated by commas", value)


def _ascend(numbers: Sequence[float], below: float) -> bool:
    return all(one < other for one, other in itertools.pairwise((*numbers, below)))


def _out_of_range(name: str, expected: str, value: Any) -> NoReturn:
    raise ConfigError(f"{flag(name)} must be {expected}, got {value}.")
