"""Request fields on routes whose requests SGLang converts and which read no `custom_params`: Anthropic's and `/v1/responses`.

A client puts them where the chat route reads them, in `custom_params` of the body. They are kept in the request's own context
until SGLang has made its own request of it: a chat request of messages, sampling parameters of a response's.
"""

import contextvars
from collections.abc import AsyncGenerator
from typing import Any

from specprefill_sgl.hooks import openai, roles
from specprefill_sgl.hooks.frontend import check_body
from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.request.options import PROTECT, ROLES, RequestError, roles_of, spec_prefill_keys

# None on routes that hand their fields through themselves
_fields: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("spec_prefill_fields", default=None)


async def read_message(original: Any, serving: Any, request: Any, raw_request: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND AnthropicServing.handle_messages."""
    try:
        await _read(raw_request, serving.openai_serving_chat.tokenizer_manager.server_args)
    except RequestError as error:
        return serving._error_response(status_code=400, error_type="invalid_request_error", message=str(error))
    return await original(serving, request, raw_request, *args, **kwargs)


async def read_response(original: Any, serving: Any, request: Any, raw_request: Any = None, *args: Any, **kwargs: Any) -> Any:
    """AROUND OpenAIServingResponses.create_responses."""
    try:
        await _read(raw_request, serving.tokenizer_manager.server_args)
    except RequestError as error:
        return serving.create_error_response(str(error), param=str(error).split()[0])
    openai.watch_from_here()
    result = await original(serving, request, raw_request, *args, **kwargs)
    return openai.extend_response_stream(result) if isinstance(result, AsyncGenerator) else result


async def _read(raw_request: Any, server_args: Any) -> None:
    """Only what is Speculative Prefill's goes through: without it these routes are SGLang's own."""
    body = await raw_request.json() if raw_request is not None else {}
    check_body(body, server_args, has_roles=True)
    custom: Any = body.get("custom_params")
    _fields.set({key: custom[key] for key in spec_prefill_keys(custom)})


def process_messages(original: Any, serving: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND OpenAIServingChat._process_messages: fields go in with the messages, spans of protected roles come out."""
    fields = _fields.get()
    if fields:
        request.custom_params = fields
    result = roles.protect_messages(original, serving, request, *args, **kwargs)
    if fields is not None:
        _fields.set(request.custom_params)
    return result


def protect_harmony(result: Any, serving: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER _make_request_with_harmony, which does not tell where messages are: with protected roles everything is kept."""
    fields, config = dict(_fields.get() or {}), config_of(serving.tokenizer_manager.server_args)
    asked = roles_of(fields)
    fields.pop(ROLES, None)
    if asked or (asked is None and config is not None and config.protect_roles):
        _, _, (ids,) = result
        fields[PROTECT] = [0, len(ids)]
    _fields.set(fields)


def hand_through(params: dict[str, Any], *_args: Any, **_kwargs: Any) -> None:
    """AFTER ResponsesRequest.to_sampling_params."""
    if fields := _fields.get():
        params["custom_params"] = fields
