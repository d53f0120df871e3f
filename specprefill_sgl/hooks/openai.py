"""The reply object on the OpenAI and Anthropic routes: in `sglext`, SGLang's own extension of a reply or of a stream's end."""

import contextvars
import functools
import json
from collections.abc import AsyncIterator
from typing import Any

from specprefill_sgl.observability.reply import KEY

_seen: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("spec_prefill_replies", default=None)


def watch_generation(original: Any, manager: Any, obj: Any, *args: Any, **kwargs: Any) -> AsyncIterator:
    """AROUND TokenizerManager.generate_request: note the reply objects of a stream an OpenAI route makes of it."""
    outputs = original(manager, obj, *args, **kwargs)
    seen = _seen.get()
    return outputs if seen is None else _noting(outputs, seen)


async def _noting(outputs: AsyncIterator, seen: dict[str, Any]) -> AsyncIterator:
    async for output in outputs:
        if KEY in output["meta_info"]:
            seen[output["meta_info"]["id"]] = output["meta_info"][KEY]
        yield output


def watch_from_here() -> None:
    """Note the reply objects of what is generated from now on in this request's own context."""
    _seen.set({})


async def extend_stream(original: Any, serving: Any, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
    """AROUND _generate_chat_stream and _generate_completion_stream: the chunk that ends a choice has its reply object."""
    seen: dict[str, Any] = {}
    _seen.set(seen)  # in this request's own context; nothing else generates in it
    async for event in original(serving, *args, **kwargs):
        yield _extended(event, seen) if seen and '"finish_reason":"' in event else event


def _extended(event: str, seen: dict[str, Any]) -> str:
    chunk = json.loads(event.removeprefix("data: "))
    if (reply := seen.get(chunk["id"])) is None or not any(choice.get("finish_reason") for choice in chunk["choices"]):
        return event
    chunk["sglext"] = {**(chunk.get("sglext") or {}), KEY: reply}
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def extend_message_stream(original: Any, serving: Any, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
    """AROUND _generate_anthropic_stream, which makes its events of a chat stream: the one that says why it ended."""
    async for event in original(serving, *args, **kwargs):
        yield _with_sole_reply(event) if event.startswith("event: message_delta\n") else event


async def extend_response_stream(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The same of `/v1/responses`, whose last event has the whole response."""
    async for event in events:
        ends = event.startswith(("event: response.completed\n", "event: response.incomplete\n", "event: response.failed\n"))
        yield _with_sole_reply(event, "response") if ends else event


def _with_sole_reply(event: str, inside: str | None = None) -> str:
    """An event of a stream for one prompt and its JSON, with the prompt's reply object, if there is one."""
    head, _, data = event.partition("data: ")
    body = json.loads(data)
    for reply in (_seen.get() or {}).values():
        (body if inside is None else body[inside])["sglext"] = {KEY: reply}
    return f"{head}data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def extend_message(result: Any, _serving: Any, response: Any, *_args: Any, **_kwargs: Any) -> Any:
    """AFTER AnthropicServing._convert_response, of a chat reply that has it already."""
    return _with_sglext(result, getattr(response.sglext, KEY, None))


def extend_response(result: Any, *_args: Any, **_kwargs: Any) -> Any:
    """AFTER OpenAIServingResponses._build_response, whose result may be stored, too."""
    return _with_sglext(result, (_seen.get() or {}).get(result.id))


def _with_sglext(result: Any, reply: dict[str, Any] | None) -> Any:
    if reply is None:
        return None
    plain: Any = type(result)
    values = {name: getattr(result, name) for name in plain.model_fields}
    return _with_field(plain).model_construct(**values, sglext={KEY: reply})


@functools.cache
def _with_field(plain: Any) -> Any:
    """A class of replies that has no `sglext`, with one."""
    from pydantic import create_model

    return create_model(plain.__name__, __base__=plain, sglext=(dict[str, Any] | None, None))


def extend_reply(result: Any, _serving: Any, _request: Any, outputs: list[dict], *_args: Any, **_kwargs: Any) -> Any:
    """AFTER _build_chat_response and _build_completion_response: one object, or one per choice in their order."""
    replies = [output["meta_info"][KEY] for output in outputs if KEY in output["meta_info"]]
    if not replies or not hasattr(result, "sglext"):  # an error has none
        return None
    plain: Any = type(result)
    reply_class, extension_class = _extended_classes(plain)
    fields = {} if result.sglext is None else result.sglext.model_dump()
    extension = extension_class(**fields, **{KEY: replies if len(outputs) > 1 else replies[0]})
    values = {name: getattr(result, name) for name in plain.model_fields}
    return reply_class.model_construct(**{**values, "sglext": extension})


@functools.cache
def _extended_classes(reply_class: Any) -> tuple[Any, Any]:
    """SGLang's classes of a reply and of `sglext`, the latter with our field, which pydantic would drop otherwise."""
    from pydantic import SerializeAsAny, create_model
    from sglang.srt.entrypoints.openai.protocol import SglExt

    extension = create_model("SglExt", __base__=SglExt, **{KEY: (Any, None)})
    return create_model(reply_class.__name__, __base__=reply_class, sglext=(SerializeAsAny[SglExt] | None, None)), extension
