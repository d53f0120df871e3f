"""Per-request fields: the `spec_prefill*` keys of `custom_params` (docs/reference.md, Request fields)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, get_args, get_type_hints

import msgspec

from specprefill_sgl.config import PREFIX, Backfill, SpecPrefillConfig
from specprefill_sgl.selection.rule import CHANGEABLE, PRESETS, Preset, Rule, expected

MAX_TOKENS = 2**31 - 1
PROTECT, ROLES = "spec_prefill_protect", "spec_prefill_protect_roles"


class RequestError(ValueError):
    """A request field that cannot be honoured; SGLang answers HTTP 400 with the message, which names the field."""


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one request asked for; None means the server's value.

    `protect` holds (start, end) pairs of token offsets in the prompt, end excluded; `changes` what the request changes of its
    selection rule.
    """

    enabled: bool | None = None
    method: str | None = None
    keep_ratio: float | None = None
    keep_min: float | None = None
    selection: Preset | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    min_tokens: int | None = None
    keep_last: int | None = None
    revive_every: int | None = None
    revive_chunks: int | None = None
    revive_max: int | None = None
    backfill: Backfill | None = None
    protect: tuple[tuple[int, int], ...] = ()
    return_positions: bool = False
    return_scores: bool = False
    return_votes: bool = False

    def method_of(self, config: SpecPrefillConfig) -> str:
        """Who chooses the tokens of this request."""
        return self.method or config.method[0]

    def rule(self, config: SpecPrefillConfig) -> Rule:
        """The rule this request is selected by."""
        return msgspec.structs.replace(
            config.rule_for(self.selection or config.selection, self.method_of(config)), **dict(self.changes)
        )


def given(*values: Any) -> Any:
    """The first that is given: the request's, the server's, what else holds."""
    return next(value for value in values if value is not None)


def spec_prefill_keys(params: Any) -> list[str]:
    """The keys of a mapping that belong to Speculative Prefill, known or not."""
    if not isinstance(params, Mapping):
        return []
    return [key for key in params if isinstance(key, str) and key.startswith(PREFIX)]


def fields() -> tuple[str, ...]:
    """The keys that a request may have, those of routes with messages included."""
    return (*_READERS, ROLES)


def parse(custom_params: Any, prompt_tokens: int | None = None, methods: Sequence[str] | None = None) -> RequestOptions:
    """Read and check a request's fields.

    Parameters
    ----------
    custom_params : mapping or None
        `sampling_params.custom_params`; keys that do not start with `spec_prefill` are not looked at.
    prompt_tokens : int, optional
        Length of the prompt; if given, protected spans must lie inside it.
    methods : sequence of str, optional
        Those that are loaded; if given, the request must ask for one of them.

    Raises
    ------
    RequestError
        For an unknown `spec_prefill*` key, a wrong type or a wrong range.
    """
    values: dict[str, Any] = {}
    for key in spec_prefill_keys(custom_params):
        if key == ROLES:
            _refuse(
                key, "is read only where a request has messages with roles: /v1/chat/completions, /v1/messages, /v1/responses"
            )
        if key not in _READERS:
            _refuse(key, f"is not a known field; known are {', '.join(sorted(_READERS))}")
        name, read = _READERS[key]
        values[name] = read(key, custom_params[key])
    changes = tuple((name, values.pop(name)) for name in CHANGEABLE if name in values)
    options = RequestOptions(**values, changes=changes)
    if options.method is not None and methods is not None and options.method not in methods:
        _refuse(
            "spec_prefill_method", f"must be one that the server loads, {' or '.join(methods)}, got {_shown(options.method)}"
        )
    if options.keep_min is not None and options.keep_ratio is not None and options.keep_min > options.keep_ratio:
        _refuse("spec_prefill_keep_min", f"must be at most spec_prefill_keep_ratio, got {options.keep_min}")
    if prompt_tokens is not None and any(end > prompt_tokens for _, end in options.protect):
        _refuse(PROTECT, f"reaches beyond the prompt's {prompt_tokens} tokens")
    return options


def roles_of(custom_params: Any) -> tuple[str, ...] | None:
    """Roles whose messages are kept whole; None if the request does not say.

    Raises
    ------
    RequestError
        If it is no list of non-empty strings.
    """
    if not isinstance(custom_params, Mapping) or ROLES not in custom_params:
        return None
    value = custom_params[ROLES]
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        _refuse(ROLES, f"must be a list of roles, got {_shown(value)}")
    return tuple(value)


def _refuse(key: str, problem: str) -> NoReturn:
    raise RequestError(f"{key} {problem}.")


def _bool(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _refuse(key, f"must be true or false, got {_shown(value)}")
    return value


def _keep_ratio(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(key, f"must be a number in (0, 1], got {_shown(value)}")
    if not 0 < value <= 1:  # false for NaN too
        _refuse(key, f"must be in (0, 1], got {_shown(value)}")
    return float(value)


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        _refuse(key, f"must be a string, got {_shown(value)}")
    return value


def _tokens(key: str, value: Any) -> int:
    """A whole number, which may be written as 64.0: a gRPC front end has no other numbers."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(key, f"must be an integer, got {_shown(value)}")
    if not 0 <= value <= MAX_TOKENS:
        _refuse(key, f"must be in [0, {MAX_TOKENS}], got {_shown(value)}")
    return value


def _positive(key: str, value: Any) -> int:
    if (number := _tokens(key, value)) == 0:
        _refuse(key, "must be at least 1, got 0")
    return number


def _spans(key: str, value: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list | tuple) or len(value) % 2:
        _refuse(key, f"must be a flat list of start, end offsets, got {_shown(value)}")
    offsets = [_tokens(key, offset) for offset in value]
    spans = tuple(zip(offsets[::2], offsets[1::2], strict=True))
    if any(start >= end for start, end in spans):
        _refuse(key, f"must have start < end in every pair, got {_shown(value)}")
    return spans


def _shown(value: Any) -> str:
    huge = isinstance(value, int) and abs(value) >= 2**64  # Python refuses to print very long integers
    text = "an integer beyond 64 bits" if huge else repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _one_of(choices: tuple[str, ...]) -> Callable[[str, Any], str]:
    def read(key: str, value: Any) -> str:
        if value not in choices:
            _refuse(key, f"must be {' or '.join(choices)}, got {_shown(value)}")
        return value

    return read


def _of_rule(name: str) -> Callable[[str, Any], Any]:
    """A reader of one field of a rule, by its type."""
    kind = get_type_hints(Rule)[name]
    if kind is not int:
        return _bool if kind is bool else _one_of(get_args(kind))

    def read(key: str, value: Any) -> int:
        if (wanted := expected(name, number := _tokens(key, value))) is not None:
            _refuse(key, f"must be {wanted}, got {_shown(value)}")
        return number

    return read


_READERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "spec_prefill": ("enabled", _bool),
    "spec_prefill_method": ("method", _text),
    "spec_prefill_keep_ratio": ("keep_ratio", _keep_ratio),
    "spec_prefill_keep_min": ("keep_min", _keep_ratio),
    "spec_prefill_selection": ("selection", _one_of(PRESETS)),
    **{f"{PREFIX}_{name}": (name, _of_rule(name)) for name in CHANGEABLE if name != "lookahead"},
    "spec_prefill_min_tokens": ("min_tokens", _tokens),
    "spec_prefill_keep_last": ("keep_last", _tokens),
    "spec_prefill_revive_every": ("revive_every", _tokens),
    **{f"{PREFIX}_{name}": (name, _positive) for name in ("revive_chunks", "revive_max")},
    "spec_prefill_backfill": ("backfill", _one_of(get_args(Backfill))),
    PROTECT: ("protect", _spans),
    "spec_prefill_return_positions": ("return_positions", _bool),
    "spec_prefill_return_scores": ("return_scores", _bool),
    "spec_prefill_return_votes": ("return_votes", _bool),
}
