"""Chat messages that are kept whole: token offsets of roles, read off SGLang's own rendering of the conversation."""

import functools
from collections.abc import Callable
from typing import Any

from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.options import PROTECT, ROLES, RequestError, roles_of


def protect_messages(original: Any, serving: Any, request: Any, is_multimodal: bool, *args: Any, **kwargs: Any) -> Any:
    """AROUND OpenAIServingChat._process_messages: turn protected roles into protected spans of the request.

    Raises
    ------
    RequestError
        A ValueError, which SGLang answers with HTTP 400: roles asked for with ids instead of messages.
    """
    config = config_of(serving.tokenizer_manager.server_args)
    custom = request.custom_params
    asked = roles_of(custom)
    roles = asked if asked is not None else (config.protect_roles if config is not None else ())
    if isinstance(custom, dict) and ROLES in custom:  # the scheduler knows spans only
        request.custom_params = {key: value for key, value in custom.items() if key != ROLES}
    if asked and request.input_ids is not None:
        raise RequestError(f"{ROLES} cannot be combined with input_ids, use {PROTECT}.")
    result = original(serving, request, is_multimodal, *args, **kwargs)
    wanted = [message.role in roles for message in request.messages]
    ids = result.prompt_ids
    if config is None or not any(wanted) or request.input_ids is not None or not isinstance(ids, list):
        return result  # with text in place of ids the request is multimodal, hence dense

    @functools.cache
    def boundary(count: int) -> int | None:
        """Where the first messages end: rendered alone they are the beginning of the whole. None: they cannot stand alone."""
        part = request.model_copy(update={"messages": request.messages[:count]}, deep=True)
        # else SGLang rewrites a last message of the assistant
        part.continue_final_message = part._format_add_generation_prompt = False
        try:
            return _common(original(serving, part, is_multimodal, *args, **kwargs).prompt_ids, ids) if count else 0
        except Exception:  # whatever a template raises
            return None

    def holds(index: int, start: int, end: int) -> bool:
        """Whether the message's text is there; a template may have put it elsewhere."""
        there = _squeezed(serving.tokenizer_manager.tokenizer.decode(ids[start:end]))
        return all(_squeezed(text) in there for text in _texts(request.messages[index].content))

    custom = dict(request.custom_params or {})
    request.custom_params = {**custom, PROTECT: [*(custom.get(PROTECT) or ()), *spans(wanted, boundary, holds, len(ids))]}
    return result


def spans(
    wanted: list[bool], boundary: Callable[[int], int | None], holds: Callable[[int, int, int], bool], length: int
) -> list[int]:
    """Flat (start, end) pairs of the wanted messages in a conversation of `length` tokens; neighbours share one.

    Where a boundary is not known, the one before or after it is taken. A message that is not found between its boundaries (a
    template may move or merge messages) makes the whole conversation protected.
    """
    found: list[int] = []
    for index in (index for index, one in enumerate(wanted) if one):
        start = next(at for at in map(boundary, range(index, -1, -1)) if at is not None)
        later = (boundary(count) for count in range(index + 1, len(wanted)))
        end = next((at for at in later if at is not None), length)
        if not holds(index, start, end):
            return [0, length]
        if found and start <= found[-1]:
            found[-1] = max(end, found[-1])
        else:
            found += [start, end]
    return found


def _texts(content: Any) -> list[str]:
    """A message's text: SGLang takes a string, parts of which some are text, or none."""
    parts = [content] if isinstance(content, str) else [getattr(part, "text", "") for part in content or ()]
    return [part for part in parts if part]


def _squeezed(text: str) -> str:
    """Without white space, which templates and tokenizers trim."""
    return "".join(text.split())


def _common(part: list[int], whole: list[int]) -> int:
    return next((at for at, (one, other) in enumerate(zip(part, whole, strict=False)) if one != other), len(part))
