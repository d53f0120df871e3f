"""The reply object on the OpenAI routes: in `sglext`, SGLang's own extension of a reply or of a stream's last chunk."""

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
