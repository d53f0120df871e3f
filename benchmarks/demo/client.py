"""The routes people use: `/generate`, the OpenAI chat route, and an SGLang frontend program."""

import json
import time
from dataclasses import dataclass

import openai
import requests
import sglang as sgl

from benchmarks.demo.server import DemoError

ANSWER_TOKENS = 16


@dataclass
class Timed:
    """One request: `ttft_s` is the time to the first streamed token, None where a route does not stream."""

    spec_prefill: dict
    total_s: float
    ttft_s: float | None = None


def generate(url: str, prompt: str, *, sparse: bool) -> Timed:
    """`/generate`, streamed, with a cold radix cache."""
    _flush(url)
    custom = {"spec_prefill": sparse, "spec_prefill_return_positions": True}
    params = {"temperature": 0, "max_new_tokens": ANSWER_TOKENS, "ignore_eos": True, "custom_params": custom}
    body = {"text": prompt, "sampling_params": params, "stream": True}
    start, first, last = time.perf_counter(), None, None
    with requests.post(url + "/generate", json=body, stream=True, timeout=600) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith(b"data: {"):
                first = first or time.perf_counter()
                last = json.loads(line[6:])
    if first is None or last is None or "meta_info" not in last:
        raise DemoError(f"/generate did not answer: {last}")
    return Timed(last["meta_info"]["spec_prefill"], time.perf_counter() - start, first - start)


def openai_chat(url: str, prompt: str) -> Timed:
    """The OpenAI chat route with the `openai` client; `return_meta_info` brings the reply object."""
    _flush(url)
    client = openai.OpenAI(base_url=url + "/v1", api_key="none")
    start = time.perf_counter()
    chat = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=ANSWER_TOKENS,
        extra_body={"custom_params": {"spec_prefill": True}, "return_meta_info": True},
    )
    total_s = time.perf_counter() - start
    info = chat.choices[0].model_extra["meta_info"]["spec_prefill"]
    if chat.usage.prompt_tokens != info["prompt_tokens"]:
        raise DemoError(f"OpenAI usage counts {chat.usage.prompt_tokens} prompt tokens, not {info['prompt_tokens']}")
    return Timed(info, total_s)


def frontend(url: str, document: str, question: str) -> Timed:
    """An SGLang frontend program. It has no place for custom_params, so the server's own settings hold."""
    _flush(url)

    @sgl.function
    def ask(s, document, question):
        s += document + question
        s += sgl.gen("answer", max_tokens=ANSWER_TOKENS, temperature=0)

    start = time.perf_counter()
    state = ask.run(document=document, question=question, backend=sgl.RuntimeEndpoint(url))
    info = state.get_meta_info("answer")["spec_prefill"]
    return Timed(info, time.perf_counter() - start)


def _flush(url: str) -> None:
    """Empty the radix cache, so that dense and sparse both start cold."""
    for _ in range(100):
        if requests.post(url + "/flush_cache", timeout=60).status_code == 200:
            return
        time.sleep(0.1)
    raise DemoError("the radix cache could not be flushed")
