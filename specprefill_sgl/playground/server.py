"""The page's own server. It passes questions on to one SGLang server, and nothing else to nobody else."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from specprefill_sgl.playground import asking, page, prompt

_SHOWN = ("method", "keep_ratio", "selection", "revive_every", "backfill", "min_tokens")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {"index.html": "text/html", page.STYLE: "text/css", page.SCRIPT: "text/javascript"}


def app(url: str, hosts: list[str], tokenizer: str | None = None) -> FastAPI:
    """The page at `/`, and the two routes that it asks.

    Parameters
    ----------
    url : str
        Of the SGLang server, without a slash at its end.
    hosts : list of str
        Names this server may be called by: a foreign page cannot make the browser call it by another (DNS rebinding).
    tokenizer : str, optional
        Folder or name; else that of the server's model.
    """
    made = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    made.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    client = httpx.AsyncClient(timeout=30)
    load = _one_at_a_time(_load)

    for route, name in {"/": "index.html", **{f"/{name}": name for name in (page.STYLE, page.SCRIPT)}}.items():
        made.get(route)(functools.partial(_asset, name))

    @made.get("/server")
    async def server() -> Response:
        """What is served there, or why nothing can be asked."""
        try:
            info = await _info(client, url)
            loaded = await asyncio.to_thread(load, tokenizer or info["tokenizer"])
        except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
            return _refused(503, _why(url, error))
        return JSONResponse({**info, "url": url, "chat": bool(loaded.chat_template)})

    @made.post("/ask")
    async def ask(request: Request) -> Response:
        """A line of JSON for each event of an answer. Only the page can send this type: others need leave, and get none."""
        if request.headers.get("content-type") != "application/json":
            return _refused(415, "The content type must be application/json.")
        try:
            wanted = msgspec.json.decode(await request.body(), type=asking.Ask)
        except msgspec.DecodeError as error:
            return _refused(400, f"{error}.")
        try:
            path = tokenizer or (await _info(client, url))["tokenizer"]
            read = functools.partial(_composed, load, path, wanted)
            composed = await asyncio.to_thread(read)
        except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
            return _refused(503, _why(url, error))
        return StreamingResponse(_lines(asking.answer(client, url, wanted, composed)), media_type="application/x-ndjson")

    return made


async def _asset(name: str) -> Response:
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache", "x-content-type-options": "nosniff"}
    return Response(page.asset(name), media_type=_TYPES[name], headers=headers)


def _one_at_a_time(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """The last tokenizer is kept: a server may be started anew with another. Two threads cannot import transformers at once."""
    lock, cached = threading.Lock(), functools.lru_cache(maxsize=1)(load)

    def loaded(path: str) -> Any:
        with lock:
            return cached(path)

    return loaded


def _load(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def _composed(load: Any, path: str, wanted: asking.Ask) -> prompt.Prompt:
    return prompt.compose(load(path), wanted.document, wanted.question, chat=wanted.chat)


async def _info(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    response = await client.get(url + "/server_info")
    response.raise_for_status()
    info = response.json()
    state = info["internal_states"][0].get("spec_prefill")
    settings = None if state is None else {name: state[name] for name in _SHOWN}
    path = info["tokenizer_path"] or info["model_path"]
    return {"model": info.get("served_model_name") or info["model_path"], "tokenizer": path, "spec_prefill": settings}


async def _lines(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async for event in events:
        yield msgspec.json.encode(event) + b"\n"


def _why(url: str, error: Exception) -> str:
    if isinstance(error, httpx.HTTPError):
        return f"{url} does not answer ({error or type(error).__name__}). Is the server running?"
    return f"The tokenizer cannot be loaded ({error}). Name its folder with --tokenizer."


def _refused(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status_code=status)
