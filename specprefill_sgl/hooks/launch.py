"""Flags, and the checks at start that refuse what cannot work (ServerArgs; the launcher's process)."""

import argparse
import os
from typing import Any, NoReturn

import msgspec

from specprefill_sgl import compat, config
from specprefill_sgl.calibration import heads_file
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.methods import registry, vocabulary
from specprefill_sgl.methods.kv_prediction import WARNING as KV_PREDICTION

_DEFAULTS = SpecPrefillConfig()
_FLAGS: tuple[tuple[str, type, str], ...] = (
    (
        "method",
        str,
        f"Who says which tokens matter; several, separated by commas: a request may choose. Default draft. {KV_PREDICTION}",
    ),
    ("draft_model_path", str, "Draft model; must share the target's tokenizer, or have one of its own."),
    ("draft_tokenizer", str, "own: the draft reads the prompt's text with its own tokenizer. Else target."),
    ("keep_ratio", float, "Fraction of the prompt that is kept, in (0, 1]."),
    ("keep_min", float, "What the keep ratio may fall to under a backlog. Default: it does not fall."),
    ("backlog", int, "Waiting requests from which on the keep ratio falls."),
    ("min_tokens", int, "Shorter prompts are prefilled dense."),
    ("selection", str, "The rule that chooses tokens: best or paper; the next nine flags change it."),
    ("lookahead", int, "Draft queries that vote, the last prompt token's included. Default 8. With a window, 1 is none."),
    ("window", int, "Last prompt tokens that vote besides. Default 0; 48 with heads."),
    ("window_votes", str, "Whether lookahead and window vote pooled or choose chunks in turns. Default pooled."),
    ("over_votes", str, "Importance over the votes: mean or max. Default max; paper: mean."),
    ("pool_kernel", int, "Width of the average pooling over positions, odd. Default 31; paper: 13."),
    ("chunk_size", int, "Tokens per chunk, the unit of selection. Default 8; paper: 32."),
    ("budget_unit", str, "Whether the keep ratio counts tokens or chunks. Default tokens; paper: chunks."),
    ("ignore_first", int, "Attention on that many tokens at the start counts for nothing. Default 4; paper: 0."),
    ("ignore_tail", str, "Nor does attention on kept tokens at the end: true or false. Default true; paper: false."),
    ("layers", str, "Of the target: first layers that read (early-layers); layers from which on tokens are dropped (lazy)."),
    ("keep_by_layer", str, "Of lazy: fractions kept from each of these layers on. Default: the same factor at each."),
    ("aux_cache_bytes", int, "Of lazy: most bytes of hidden states of dropped tokens, on each rank."),
    ("predictor", str, f"Folder of a predictor, from python -m specprefill_sgl train-predictor. {KV_PREDICTION}"),
    ("tail", int, "Last prompt tokens whose KV kv-prediction, experimental, does not predict."),
    ("heads", str, "Files of calibrated heads, which vote alone (python -m specprefill_sgl calibrate)."),
    ("revive_every", int, "Output tokens after which dropped tokens that the answer asks for return; 0: none return."),
    ("revive_chunks", int, "At most so many chunks return at a time."),
    ("revive_max", int, "At most so many times a request."),
    ("backfill", str, "Prefill dropped tokens when there is time: off, turn (for the next one) or answer (for its rest)."),
    ("backfill_tokens", int, "At most so many at a time."),
    ("backfill_decodes", int, "Decodes between two times, while anything is decoded. Default 1; for the next turn 16."),
    ("keep_first", int, "Tokens at the start whose chunks are always kept."),
    ("keep_last", int, "The same at the end. Default: the target's sliding window; of best, 48 in an eighth of the budget."),
    ("protect_roles", str, "Roles of chat messages that are kept whole, separated by commas. Default: none."),
    ("draft_max_tokens", int, "Size of the draft's KV pool in tokens. Default: the draft's context length."),
    ("config", str, "JSON file with the same names; flags and environment beat it."),
)
_ATTRIBUTE = "_spec_prefill"  # underscore names stay writable on a sealed ServerArgs and survive pickling


def config_of(server_args: Any) -> SpecPrefillConfig | None:
    """The configuration attached to a ServerArgs, None where Speculative Prefill is off."""
    return getattr(server_args, _ATTRIBUTE, None)


def add_flags(_result: Any, parser: argparse.ArgumentParser, *_args: Any) -> None:
    """AFTER ServerArgs.add_cli_args: defaults stay None so that a given flag can be told from an absent one."""
    group = parser.add_argument_group("speculative prefill (specprefill-sgl)")
    group.add_argument("--spec-prefill", action="store_true", help="Switch Speculative Prefill on.")
    for name, kind, text in _FLAGS:
        if isinstance(default := getattr(_DEFAULTS, name, None), int | float | str):
            text = f"{text} Default {default}."
        group.add_argument(flag(name), type=kind, default=None, help=text)


def attach_flags(server_args: Any, _cls: type, args: argparse.Namespace, *_args: Any) -> None:
    """AFTER ServerArgs.from_cli_args. Exits with one sentence: a command line's error is no traceback."""
    prefix = config.PREFIX
    flags = {name.removeprefix(f"{prefix}_"): value for name, value in vars(args).items() if name.startswith(f"{prefix}_")}
    flags["enabled"] = getattr(args, prefix, None)
    try:
        resolved = config.resolve(flags)
        if resolved is not None:
            resolved = _with_the_draft_for_both(resolved, server_args)
            registry.check(resolved, loads=compat.reads_prompts(server_args))
            if compat.reads_prompts(server_args):
                vocabulary.check_draft_path(resolved)
        setattr(server_args, _ATTRIBUTE, resolved)
    except ConfigError as error:
        _exit(error)


def _with_the_draft_for_both(resolved: SpecPrefillConfig, server_args: Any) -> SpecPrefillConfig:
    """If SGLang decodes with a whole model as speculative draft, one path is enough for that draft and ours."""
    if (server_args.speculative_algorithm or "").upper() != "STANDALONE":
        return resolved
    ours, theirs = resolved.draft_model_path, server_args.speculative_draft_model_path
    if theirs is None:
        server_args.speculative_draft_model_path = ours
    elif ours is None and "draft" in resolved.method:
        return msgspec.structs.replace(resolved, draft_model_path=os.path.expanduser(theirs))
    return resolved


def check_at_start(_result: Any, server_args: Any, *_args: Any) -> None:
    """AFTER ServerArgs.check_server_args: everything that can be refused before a process is started.

    `sglang.Engine` builds ServerArgs without a command line; its configuration is read here, from the environment.

    Raises
    ------
    ConfigError
        One sentence that names the flag. On a command line the process exits with that sentence instead.
    """
    on_command_line = hasattr(server_args, _ATTRIBUTE)
    if not on_command_line:
        from_environment = config.resolve({})
        if from_environment is not None:
            from_environment = _with_the_draft_for_both(from_environment, server_args)
        setattr(server_args, _ATTRIBUTE, from_environment)
    resolved = config_of(server_args)
    try:
        if resolved is not None:
            setattr(server_args, _ATTRIBUTE, _checked(resolved, server_args))
    except ConfigError as error:
        if on_command_line:
            _exit(error)
        raise
    _name_app_of_workers(server_args)


def _checked(resolved: SpecPrefillConfig, server_args: Any) -> SpecPrefillConfig:
    """The configuration with its calibrated heads read, and the methods that forget prompts."""
    from specprefill_sgl.hooks import verify

    verify()
    compat.check_version()
    registry.check(resolved, loads=compat.reads_prompts(server_args))
    compat.check_server_options(server_args)
    target = compat.target_model_config(server_args)
    compat.check_target(target)
    compat.check_handover(server_args, target)
    files = [os.path.expanduser(path) for path in resolved.heads] if compat.reads_prompts(server_args) else []
    calibrated = heads_file.load_all(files, registry.model_paths(resolved, server_args))
    resolved = msgspec.structs.replace(resolved, calibrated=calibrated)
    return msgspec.structs.replace(resolved, forgetful=registry.check_at_start(resolved, server_args, target))


def _name_app_of_workers(server_args: Any) -> None:
    """The processes of `--tokenizer-worker-num` import an app by name: one that loads plugins, unless the user has another.

    With Speculative Prefill off too, so that its fields are refused; in releases that were not tested nothing is changed.
    """
    from sglang.srt.environ import envs

    if not (compat.is_tested() and compat.releases.installed().NAMES_APP and server_args.tokenizer_worker_num > 1):
        return
    if not envs.SGLANG_HTTP_SERVER_APP_PATH.is_set():
        envs.SGLANG_HTTP_SERVER_APP_PATH.set(compat.APP_OF_WORKERS)


def _exit(error: ConfigError) -> NoReturn:
    raise SystemExit(f"specprefill-sgl: {error}") from None
