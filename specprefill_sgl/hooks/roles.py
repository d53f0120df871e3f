"""Chat messages that are kept whole: token offsets of roles, read off SGLang's own rendering of the conversation."""

from typing import Any

from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.options import PROTECT, ROLES, RequestError, roles_of


def protect_messages(original: Any, serving: Any, request: Any, is_multimodal: bool, *args: Any, **kwargs: Any) -> Any:
    """AROUND OpenAIServingChat._process_messages: turn protected roles into protected spans of the request.

    Raises
    ------
    RequestError
        A ValueError, which SGLang answers with HTTP 400.
    """
    config = config_of(serving.tokenizer_manager.server_args)
    custom = request.custom_params
    asked = roles_of(custom)
    roles = asked if asked is not None else (config.protect_roles if config is not None else ())
    if isinstance(custom, dict) and ROLES in custom:  # the scheduler knows spans only
        request.custom_params = {key: value for key, value in custom.items() if key != ROLES}
    result = original(serving, request, is_multimodal, *args, **kwargs)
    if config is None or not any(message.role in roles for message in request.messages):
        return result

    def rendered(count: int) -> list[int]:
        part = request.model_copy(update={"messages": request.messages[:count]}, deep=True)
        return _ids(original(serving, part, is_multimodal, *args, **kwargs).prompt_ids) if count else []

    spans = _spans(_ids(result.prompt_ids), [message.role in roles for message in request.messages], rendered)
    custom = dict(request.custom_params or {})
    request.custom_params = {**custom, PROTECT: [*(custom.get(PROTECT) or ()), *spans]}
    return result


def _spans(ids: list[int], wanted: list[bool], rendered: Any) -> list[int]:
    """Flat (start, end) pairs of the wanted messages; neighbours share one.

    A message begins where the rendering of the messages before it stops being a prefix of the whole one, and ends likewise.
    """
    spans: list[int] = []
    for index, one in enumerate(wanted):
        if not one:
            continue
        start = spans[-1] if index and wanted[index - 1] else _common(rendered(index), ids)
        end = len(ids) if index + 1 == len(wanted) else _common(rendered(index + 1), ids)
        if start >= end:
            raise RequestError(f"{ROLES}: message {index} cannot be located in the rendered conversation.")
        if spans and start == spans[-1]:
            spans[-1] = end
        else:
            spans += [start, end]
    return spans


def _common(part: list[int], whole: list[int]) -> int:
    return next((at for at, (one, other) in enumerate(zip(part, whole, strict=False)) if one != other), len(part))


def _ids(prompt_ids: Any) -> list[int]:
    if not isinstance(prompt_ids, list):
        raise RequestError(f"{ROLES} needs text messages.")
    return prompt_ids
