"""Requests and replies in the HTTP process: refuse bad fields with HTTP 400, put the reply object into `meta_info`."""

import json
import re
from collections.abc import Iterator
from typing import Any

from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.hooks.usable import check_usable
from specprefill_sgl.observability.reply import KEY
from specprefill_sgl.request.options import PROTECT, ROLES, RequestError, parse, roles_of, spec_prefill_keys


def check_request(manager: Any, obj: Any, input_ids: Any, *_args: Any, **_kwargs: Any) -> None:
    """BEFORE TokenizerManager._validate_one_request: every request of every route, `sglang.Engine` included.

    Raises
    ------
    RequestError
        A ValueError, which SGLang answers with HTTP 400.
    """
    params = {**(manager.preferred_sampling_params or {}), **(obj.sampling_params or {})}
    _check_params(params, manager.server_args, None if input_ids is None else len(input_ids))


def check_generate_body(_error: str | None, body: Any) -> str | None:
    """AFTER api_contract.generate_contract_error: refuse `/generate` bodies before a stream has begun with HTTP 200."""
    if not isinstance(body, dict):
        return None
    try:
        params = body.get("sampling_params")
        for one in params if isinstance(params, list) else [params]:
            _check_params(one, _server_args())
    except RequestError as error:
        return str(error)
    return None


async def check_openai_request(original: Any, serving: Any, request: Any, raw_request: Any, *args: Any, **kwargs: Any):
    """AROUND OpenAIServingBase.handle_request: the same for the OpenAI routes."""
    if raw_request is not None and raw_request.headers.get("content-type", "").startswith("application/json"):
        body = await raw_request.json()
        try:
            check_body(body, serving.tokenizer_manager.server_args, has_roles=hasattr(request, "messages"))
        except RequestError as error:
            return serving.create_error_response(str(error), param=str(error).split()[0])
    return await original(serving, request, raw_request, *args, **kwargs)


def check_body(body: Any, server_args: Any, *, has_roles: bool) -> None:
    """Refuse a body whose `custom_params` cannot be honoured; of messages roles may be protected.

    Raises
    ------
    RequestError
    """
    if isinstance(body, dict):
        _check_params(_without_roles(body) if has_roles else body, server_args)


def _without_roles(body: dict) -> dict:
    """A body with messages as other routes would send it, its roles checked; they become spans when it is rendered."""
    custom = body.get("custom_params")
    if not isinstance(custom, dict) or roles_of(custom) is None:
        return body
    others = {key: value for key, value in custom.items() if key != ROLES}
    return {**body, "custom_params": others or {PROTECT: []}}


_NOT_JSON = re.compile(rb'"(spec_prefill\w*)"\s*:\s*(-?(?:NaN|Infinity|[\d.]+[eE]\+?\d{3,}))')
_AT_TOP = ("/v1/completions", "/v1/chat/completions", "/invocations", "/v1/messages", "/v1/responses")
_READ_IN = {"/generate": "sampling_params.custom_params", **dict.fromkeys(_AT_TOP, "custom_params")}
_ELSEWHERE = f"a request to one of /generate, {', '.join(_AT_TOP)}"


async def check_json(original: Any, request: Any) -> Any:
    """AROUND ORJSONRequest.json: what pydantic or the JSON parser would drop or hide, on every route.

    Raises
    ------
    fastapi.HTTPException
        400: a field beside the place it is read from, one on a route that reads none, or NaN and infinities, which are no JSON.
    """
    try:
        body = await original(request)
    except json.JSONDecodeError:
        match = _NOT_JSON.search(await request.body())
        if match is None:
            raise
        field, value = (part.decode() for part in match.groups())
        raise _bad_request(f"{field} must be a finite number, got {value}.") from None
    if isinstance(body, dict):
        try:
            _check_places(body, request.url.path.removeprefix(request.scope.get("root_path", "")))
        except RequestError as error:
            raise _bad_request(str(error)) from None
    return body


def _check_places(body: dict, path: str) -> None:
    """Refuse fields where this route does not read them, and where nothing does (`extra_body` is the OpenAI client's)."""
    for place, fields in _places(body):
        if place != _READ_IN.get(path):
            _refuse_misplaced(fields, _READ_IN.get(path, _ELSEWHERE))


def _places(body: dict) -> Iterator[tuple[str, Any]]:
    """Where fields may be meant to be."""
    yield "", body
    yield "custom_params", body.get("custom_params")
    for outer in ("sampling_params", "extra_body", "options"):
        values = body.get(outer)
        for fields in values if isinstance(values, list) else [values]:
            if isinstance(fields, dict):
                yield outer, fields
                yield f"{outer}.custom_params", fields.get("custom_params")


def _bad_request(message: str) -> Exception:
    from fastapi import HTTPException

    return HTTPException(status_code=400, detail=message)


def attach_reply(
    original: Any, manager: Any, meta_info: dict, state: Any, customized_info: dict, index: int, *args: Any, **kwargs: Any
) -> None:
    """AROUND TokenizerManager.update_request_meta_info: an object, where SGLang would collect a list per token."""
    rest = {key: values for key, values in customized_info.items() if key != KEY}
    if rest:
        original(manager, meta_info, state, rest, index, *args, **kwargs)
    column = customized_info.get(KEY)
    if column is not None and column[index]:
        meta_info[KEY] = column[index]


def _check_params(params: Any, server_args: Any, prompt_tokens: int | None = None) -> None:
    if not isinstance(params, dict):
        return
    _refuse_misplaced(params, "custom_params")
    custom = params.get("custom_params")
    keys, config = spec_prefill_keys(custom), config_of(server_args)
    if keys and config is None:
        raise RequestError(f"{keys[0]} cannot be used: the server was started without --spec-prefill.")
    options = parse(custom, prompt_tokens, None if config is None else config.method)
    if config is None:
        return
    check_usable(options, config, server_args)


def _refuse_misplaced(fields: Any, place: str) -> None:
    for key in spec_prefill_keys(fields):
        raise RequestError(f"{key} is not read here; it belongs in {place}.")


def _server_args() -> Any:
    from sglang.srt.entrypoints import http_server

    return http_server._global_state.tokenizer_manager.server_args
