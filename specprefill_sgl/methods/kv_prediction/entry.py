"""`kv-prediction` as `methods.registry` knows it: what is refused in the launcher, and how it is loaded."""

import functools
import logging
from collections.abc import Iterator
from typing import Any

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.methods import vocabulary
from specprefill_sgl.methods.kv_prediction import predictor_file
from specprefill_sgl.methods.kv_prediction.plan import plan
from specprefill_sgl.methods.kv_prediction.predictor_file import About
from specprefill_sgl.methods.protocol import Method, Planned
from specprefill_sgl.models.ranks import Ranks

logger = logging.getLogger(__name__)


def refusals(server_args: Any) -> Iterator[str]:
    """Options with which KV that the target did not compute cannot be its prefix."""
    return compat.prediction_refusals(server_args)


def check_at_start(config: SpecPrefillConfig, server_args: Any, target: Any) -> None:
    """In the launcher: predictor, target and draft are those that belong together.

    Raises
    ------
    ConfigError
        One sentence that names the flag.
    """
    compat.check_predicted_target(target)
    about = _about(config)
    if plan() is None:
        predictor_file.check_fits(str(config.predictor), about, server_args.model_path, config.draft_model_path)
    if about.draft is None:
        if "draft" not in config.method and config.draft_model_path is not None:
            raise ConfigError(f"{flag('draft_model_path')} has no effect with {flag('predictor')} {config.predictor}.")
        for sentence in compat.first_layers_refusals(server_args, "kv-prediction"):
            raise ConfigError(sentence)
        return
    if config.draft_tokenizer == "own":
        raise ConfigError(f"{flag('method')} kv-prediction cannot be combined with {flag('draft_tokenizer')} own.")
    vocabulary.check_draft_path(config)
    draft = compat.draft_model_config(config, server_args, target=target)
    compat.check_draft(draft)
    compat.check_predicted_target(draft)
    vocabulary.check_vocabulary(config, server_args, target, draft)
    if draft.get_total_num_kv_heads() % server_args.tp_size:
        raise ConfigError(f"--tp-size {server_args.tp_size} does not divide the draft's key heads, as kv-prediction needs.")


def model_path(_config: SpecPrefillConfig, _server_args: Any) -> None:
    """No heads vote."""


def planned(config: SpecPrefillConfig, server_args: Any, target: Any) -> Planned:
    """The draft, or the target's first layers."""
    about = _about(config)
    if about.draft is None:
        states = target.hidden_size * target.dtype.itemsize
        return Planned(compat.first_layers_config(target, about.layers), None, None, states)
    return Planned(compat.draft_model_config(config, server_args, target=target), config.draft_model_path, None)


def load(name: str, config: SpecPrefillConfig, scheduler: Any, ranks: Ranks, chunk_tokens: int) -> Method:
    """Before SGLang sizes the target's pool.

    Raises
    ------
    ConfigError
        If auxiliary model, predictor and target do not fit together.
    """
    from specprefill_sgl.methods.kv_prediction.features import Features
    from specprefill_sgl.methods.kv_prediction.method import KvPrediction
    from specprefill_sgl.methods.kv_prediction.publish import Publisher
    from specprefill_sgl.methods.kv_prediction.train import Training
    from specprefill_sgl.methods.kv_prediction.writer import Writer

    about = _about(config)
    model, model_config = auxiliary(config, scheduler, chunk_tokens, about.layers if about.draft is None else None)
    target = scheduler.tp_worker.model_runner
    described = f"{flag('method')} {name}"
    try:
        features = Features(model.runner, ranks)
        if (wanted := plan()) is not None:
            return Training(name, described, model, ranks, config, model_config).prepare(target, features, wanted)
        writer = Writer(target, about, predictor_file.load_weights(str(config.predictor)), features, ranks)
    except ValueError as error:
        raise ConfigError(f"{flag('predictor')} {config.predictor} cannot be used: {error}.") from error
    return KvPrediction(name, described, model, ranks, config, model_config, publisher=Publisher(scheduler), writer=writer)


def auxiliary(config: SpecPrefillConfig, scheduler: Any, chunk_tokens: int, layers: int | None) -> tuple[Any, Any]:
    """The draft's model and configuration, or those of so many first layers of the target.

    Raises
    ------
    ConfigError
        If it cannot be loaded.
    """
    from specprefill_sgl.methods.kv_prediction.exits import ExitRunner
    from specprefill_sgl.models.private import PrivateModel
    from specprefill_sgl.models.private import load as load_model

    if layers is None:
        draft = compat.draft_model_config(config, scheduler.server_args, target=scheduler.model_config)
        return load_model(config, draft, scheduler, chunk_tokens=chunk_tokens), draft
    first = compat.first_layers_config(scheduler.model_config, layers)
    runner = functools.partial(ExitRunner, lender=scheduler.tp_worker.model_runner, layers=layers)
    try:
        return PrivateModel(config, first, scheduler, chunk_tokens=chunk_tokens, runner=runner, keys_suffice=False), first
    except Exception as error:
        raise ConfigError(f"{flag('method')} kv-prediction cannot be used with this target: {error}") from error


@functools.cache
def _read(folder: str) -> About:
    return predictor_file.about(folder)


def _about(config: SpecPrefillConfig) -> About:
    if (wanted := plan()) is not None:
        return wanted.about
    assert config.predictor is not None
    return _read(config.predictor)
