"""Streamed requests at a constant gap: when their first tokens came, and when they were done."""

import asyncio
import json
import time

import aiohttp

_TIMEOUT = aiohttp.ClientTimeout(total=3600)


def open_loop(
    url: str, prompts: list[list[int]], *, output_tokens: int, gap_s: float, custom: dict | None = None
) -> list[tuple[float, float]]:
    """Seconds to the first token and to the end of every request, sent one gap after the other whatever the server does.

    Returns
    -------
    list of (first token, whole)

    Raises
    ------
    RuntimeError
        If a request ended otherwise than with its last token.
    """
    params = {"temperature": 0, "max_new_tokens": output_tokens, "ignore_eos": True}
    if custom is not None:
        params["custom_params"] = custom
    bodies = [{"input_ids": ids, "sampling_params": params, "stream": True} for ids in prompts]
    return asyncio.run(_send(url + "/generate", bodies, gap_s))


async def _send(url: str, bodies: list[dict], gap_s: float) -> list[tuple[float, float]]:
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:

        async def one(number: int, body: dict) -> tuple[float, float]:
            await asyncio.sleep(number * gap_s)
            start, first, last = time.perf_counter(), 0.0, b""
            async with session.post(url, json=body) as response:
                response.raise_for_status()
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        first, last = first or time.perf_counter() - start, line
            whole = time.perf_counter() - start
            ended = json.loads(last.removeprefix(b"data: ") or "{}").get("meta_info", {}).get("finish_reason")
            if (ended or {}).get("type") != "length":  # SGLang reports errors and aborts within a stream too
                raise RuntimeError(f"a request ended with {last[:500]!r}")
            return round(first, 4), round(whole, 4)

        return await asyncio.gather(*(one(number, body) for number, body in enumerate(bodies)))
