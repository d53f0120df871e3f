"""Whether the draft can read the target's token ids: same tokenizer, same vocabulary; or the prompt's text in its own."""

import functools
import logging
import os
from typing import Any

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag
from specprefill_sgl.methods.own_tokens import OwnTokens

logger = logging.getLogger(__name__)

# Models of one family pad the same vocabulary to different multiples (Qwen2.5 7B: 152,064; 0.5B: 151,936).
_PADDING = 0.01


def check_draft_path(config: SpecPrefillConfig) -> None:
    """Refuse a local draft path that is not there."""
    path = config.draft_model_path
    if path is not None and path.startswith((".", "/")) and not os.path.isdir(path):
        raise ConfigError(f"{flag('draft_model_path')} {path} does not exist.")


def check_vocabulary(config: SpecPrefillConfig, server_args: Any, target: Any, draft: Any) -> None:
    """Refuse a draft that cannot read what the target reads.

    Where only added tokens differ, as between generations of a family, a warning says so, and the draft reads the target's ids:
    what it takes for another added token misleads its votes, never the answer; prompts with ids it lacks are prefilled dense.

    Parameters
    ----------
    config : SpecPrefillConfig
    server_args : ServerArgs
    target, draft : ModelConfig

    Raises
    ------
    ConfigError
        Names the flag and the difference.
    """
    name = flag("draft_model_path")
    assert config.draft_model_path is not None
    if config.draft_tokenizer == "own":
        _check_own(config, server_args)
        return
    if abs(target.vocab_size - draft.vocab_size) > _PADDING * target.vocab_size:
        raise ConfigError(
            f"{name}: the draft's vocabulary of {draft.vocab_size} differs from the target's of {target.vocab_size}."
        )
    tokenizers = _tokenizers(config, server_args)
    if any(not hasattr(tokenizer, "get_vocab") for tokenizer in tokenizers):
        if target.vocab_size != draft.vocab_size or not server_args.skip_tokenizer_init:
            raise ConfigError(f"{name}: target and draft must both have a tokenizer that can be compared.")
        return
    whole = [tokenizer.get_vocab() for tokenizer in tokenizers]
    if whole[0] == whole[1]:
        return
    differing = sorted(token for token in whole[0].keys() | whole[1].keys() if whole[0].get(token) != whole[1].get(token))
    added = {token for tokenizer in tokenizers for token in tokenizer.get_added_vocab()}
    if not added.issuperset(differing):
        raise ConfigError(
            f"{name}: the draft's tokenizer differs from the target's ({len(differing)} tokens); with "
            f"{flag('draft_tokenizer')} own the draft reads the text in its own."
        )
    logger.warning("%s: the draft's tokenizer differs from the target's in added tokens: %s.", name, ", ".join(differing))


def _check_own(config: SpecPrefillConfig, server_args: Any) -> None:
    name = f"{flag('draft_tokenizer')} own"
    for option, why in compat.cannot_read(server_args):
        raise ConfigError(f"{name} cannot be combined with {option}: {why}.")
    target, reader = _tokenizers(config, server_args)
    if not hasattr(target, "convert_ids_to_tokens"):
        raise ConfigError(f"{name}: the target has no tokenizer that says the text of each id.")
    if not getattr(reader, "is_fast", False):
        raise ConfigError(f"{name}: the draft must have a fast tokenizer, which says the characters of each of its tokens.")
    try:
        read = own_tokens(config, server_args).read(target.encode("a prompt, read", add_special_tokens=False))
    except Exception as error:
        raise ConfigError(f"{name}: a prompt of the target's cannot be read by the draft: {error!r}.") from error
    if read is None:
        raise ConfigError(f"{name}: the target's tokenizer does not say the text of its ids.")


def own_tokens(config: SpecPrefillConfig, server_args: Any) -> OwnTokens:
    """The draft's own tokens of the target's prompts. Made once: the launcher's checks and the front end share one process."""
    return _own_tokens(*_where(config, server_args))


def _tokenizers(config: SpecPrefillConfig, server_args: Any) -> tuple[Any, Any]:
    """The target's and the draft's; None for one that cannot be loaded."""
    target, draft = _where(config, server_args)
    return _loaded(*target), _loaded(*draft)


_Where = tuple[str, bool, str | None]


def _where(config: SpecPrefillConfig, server_args: Any) -> tuple[_Where, _Where]:
    """Path, whether its code is trusted, and revision of both tokenizers; the target's as SGLang's front end loads it."""
    assert config.draft_model_path is not None
    trust = server_args.trust_remote_code
    path = server_args.tokenizer_path or server_args.model_path
    return (path, trust, server_args.revision), (config.draft_model_path, trust, None)


@functools.cache
def _own_tokens(target: _Where, draft: _Where) -> OwnTokens:
    return OwnTokens(_loaded(*target), _loaded(*draft))


@functools.cache
def _loaded(path: str, trust_remote_code: bool, revision: str | None) -> Any:
    from sglang.srt.utils.hf_transformers import get_tokenizer

    try:
        return get_tokenizer(path, trust_remote_code=trust_remote_code, revision=revision)
    except Exception:
        return None
