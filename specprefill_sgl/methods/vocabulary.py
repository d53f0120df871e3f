"""The draft must read the target's token ids: same tokenizer, same vocabulary."""

import os
from typing import Any

from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag

# Models of one family pad the same vocabulary to different multiples (Qwen2.5 7B: 152,064; 0.5B: 151,936).
_PADDING = 0.01


def check_draft_path(config: SpecPrefillConfig) -> None:
    """Refuse a local draft path that is not there."""
    path = config.draft_model_path
    if path is not None and path.startswith((".", "/")) and not os.path.isdir(path):
        raise ConfigError(f"{flag('draft_model_path')} {path} does not exist.")


def check_vocabulary(config: SpecPrefillConfig, server_args: Any, target: Any, draft: Any) -> None:
    """Refuse a draft whose tokenizer or vocabulary differs from the target's.

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
    if abs(target.vocab_size - draft.vocab_size) > _PADDING * target.vocab_size:
        raise ConfigError(
            f"{name}: the draft's vocabulary of {draft.vocab_size} differs from the target's of {target.vocab_size}."
        )
    target_tokens = _vocabulary(server_args.tokenizer_path or server_args.model_path, server_args)
    draft_tokens = _vocabulary(config.draft_model_path, server_args)
    if target_tokens is None or draft_tokens is None:
        if target.vocab_size != draft.vocab_size or not server_args.skip_tokenizer_init:
            raise ConfigError(f"{name}: target and draft must both have a tokenizer that can be compared.")
        return
    if target_tokens != draft_tokens:
        differing = sum(draft_tokens.get(token) != index for token, index in target_tokens.items())
        raise ConfigError(f"{name}: the draft's tokenizer differs from the target's ({differing or len(draft_tokens)} tokens).")


def _vocabulary(path: str, server_args: Any) -> dict[str, int] | None:
    from sglang.srt.utils.hf_transformers import get_tokenizer

    try:
        tokenizer = get_tokenizer(path, trust_remote_code=server_args.trust_remote_code)
    except Exception:
        return None
    return tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
