"""Chat messages that are kept whole: token offsets of roles, read off SGLang's own rendering of the conversation."""

import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.request.options import PROTECT, ROLES, RequestError, roles_of


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
        part = request.model_copy(update={"messages": request.messages[:count]})
        # else SGLang rewrites a last message of the assistant
        part.continue_final_message = part._format_add_generation_prompt = False
        try:
            return _common(original(serving, part, is_multimodal, *args, **kwargs).prompt_ids, ids) if count else 0
        except Exception:  # whatever a template raises
            return None

    def holds(first: int, last: int, start: int, end: int) -> bool:
        """Whether the text of these messages is there; a template may have put it elsewhere."""
        there = _squeezed(serving.tokenizer_manager.tokenizer.decode(ids[start:end]))
        texts = [text for message in request.messages[first:last] for text in _texts(message.content)]
        return start < end and all(any(_squeezed(form) in there for form in _forms(text)) for text in texts)

    custom = dict(request.custom_params or {})
    found = spans(runs(wanted), boundary, holds, len(wanted), len(ids))
    request.custom_params = {**custom, PROTECT: [*(custom.get(PROTECT) or ()), *found]}
    return result


def runs(wanted: list[bool], most: int = 8) -> list[tuple[int, int]]:
    """(first, past the last) of neighbouring wanted messages. Rendering takes time, so of many the nearest are joined."""
    found = [(first, first + 1) for first, one in enumerate(wanted) if one]
    while len(found) > 1:
        gap, at = min((after[0] - before[1], at) for at, (before, after) in enumerate(itertools.pairwise(found)))
        if gap > 0 and len(found) <= most:
            break
        found[at : at + 2] = [(found[at][0], found[at + 1][1])]
    return found


def spans(
    wanted: list[tuple[int, int]],
    boundary: Callable[[int], int | None],
    holds: Callable[[int, int, int, int], bool],
    messages: int,
    length: int,
) -> list[int]:
    """Flat (start, end) pairs of the wanted runs in a conversation of `length` tokens.

    Where a boundary is not known, the one before or after it is taken. What is not found between its boundaries (a template may
    move or merge messages) makes the whole conversation protected.
    """
    found: list[int] = []
    for first, last in wanted:
        start = next(at for at in map(boundary, range(first, -1, -1)) if at is not None)
        end = next((at for at in map(boundary, range(last, messages)) if at is not None), length)
        if not holds(first, last, start, end):
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


def _forms(text: str) -> tuple[str, ...]:
    """How templates write a text: as it is, as JSON, without the reasoning before an answer."""
    return text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1], text.rpartition("</think>")[2]


def _squeezed(text: str) -> str:
    """Without white space, which templates and tokenizers trim."""
    return "".join(text.split())


def _common(part: list[int], whole: list[int]) -> int:
    return next((at for at, (one, other) in enumerate(zip(part, whole, strict=False)) if one != other), len(part))
