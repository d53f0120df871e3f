"""One question to the server: what is sent, and what comes back as lines that the page reads."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import uuid4

import httpx
import msgspec

from specprefill_sgl.playground import explained
from specprefill_sgl.playground.prompt import Prompt
from specprefill_sgl.selection.rule import Preset

_MOST_ANSWER = 4096  # tokens
_TIMEOUT = httpx.Timeout(None, connect=10)  # a long dense prefill says nothing for minutes


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the page asks for; None is the server's value."""

    document: str
    question: str
    sparse: bool
    chat: bool = False
    answer_tokens: Annotated[int, msgspec.Meta(ge=1, le=_MOST_ANSWER)] = 64
    keep_ratio: float | None = None
    method: str | None = None
    selection: Preset | None = None
    revive_every: int | None = None

    def body(self, ids: list[int]) -> dict[str, Any]:
        """Of `/generate`. Nothing is found in a cache, so that times are those of a prompt that is asked for the first time."""
        custom: dict[str, Any] = {"spec_prefill": self.sparse}
        if self.sparse:
            custom |= {"spec_prefill_min_tokens": 0}
            custom |= {f"spec_prefill_return_{name}": True for name in ("positions", "scores", "votes")}
            names = ("keep_ratio", "method", "selection", "revive_every")
            custom |= {f"spec_prefill_{name}": value for name in names if (value := getattr(self, name)) is not None}
        params = {"temperature": 0, "max_new_tokens": self.answer_tokens, "custom_params": custom}
        return {"input_ids": ids, "sampling_params": params, "stream": True, "extra_key": uuid4().hex}


async def answer(client: httpx.AsyncClient, url: str, ask: Ask, prompt: Prompt) -> AsyncIterator[dict[str, Any]]:
    """`prompt`, then `text` with `ttft_ms` as it grows, then `done` with the reply and the chunks; or `error`, a sentence."""
    yield {"prompt": len(prompt.ids)}
    start, ttft_ms, last = time.perf_counter(), 0.0, None
    try:
        async with client.stream("POST", url + "/generate", json=ask.body(prompt.ids), timeout=_TIMEOUT) as response:
            if response.status_code != 200:
                yield {"error": f"The server answered {response.status_code}: {_sentence(await response.aread())}"}
                return
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                ttft_ms = ttft_ms or 1e3 * (time.perf_counter() - start)
                event = msgspec.json.decode(line[6:])
                if "error" in event:
                    yield {"error": f"The server answered: {_sentence(line[6:].encode())}"}
                    return
                last = event
                yield {"text": event["text"], "ttft_ms": ttft_ms}
    except httpx.HTTPError as error:
        yield {"error": f"{url} does not answer ({error or type(error).__name__}). Is the server running?"}
        return
    yield {"done": _done(prompt, last["meta_info"].get("spec_prefill"))} if last else {"error": "The answer was empty."}


def _done(prompt: Prompt, reply: dict[str, Any] | None) -> dict[str, Any]:
    """Of a server without the plugin there is no reply object; of one that scored nothing, no chunks."""
    if reply is None:
        return {"reply": {"applied": False, "reason": "the server was started without --spec-prefill"}}
    if not reply["applied"] or not reply.get("scores"):
        return {"reply": {name: value for name, value in reply.items() if not isinstance(value, list | dict)}}
    asked = explained.queries(reply["votes"], len(prompt.ids), prompt.decode) if reply.get("votes") else []
    return explained.plain(explained.chunks(prompt, reply, asked), reply)


def _sentence(content: bytes) -> str:
    """SGLang's error message, wherever in the JSON it is."""
    try:
        found: Any = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content.decode("utf-8", "replace")[:300]
    while isinstance(found, dict):
        found = found.get("error") or found.get("message") or str(found)
    return str(found)
