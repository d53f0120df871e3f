"""What a server is configured with, and what its settings are called."""

from typing import Any, Literal

import msgspec

from specprefill_sgl.selection.rule import CHANGEABLE, MOST_LOOKAHEAD, Heads, Preset, Rule, preset

PREFIX = "spec_prefill"
Backfill = Literal["off", "turn", "answer"]


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
