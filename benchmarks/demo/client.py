"""The routes people use: `/generate`, the OpenAI chat route, and an SGLang frontend program."""

import json
import time
from dataclasses import dataclass

import openai
import requests
import sglang as sgl

from benchmarks import launch

ANSWER_TOKENS = 4


class DemoError(RuntimeError):
    """Something is wrong with the demo; the message is one sentence."""


@dataclass
class Reply:
    """One request: `ttft_s` is the time to the first streamed token, None where a route does not stream."""

    spec_prefill: dict
    text: str
    total_s: float
    ttft_s: float | None = None


def generate(url: str, prompt: str, *, sparse: bool) -> Reply:
    """`/generate`, streamed, with a cold radix cache."""
    launch.flush(url)
    custom = {"spec_prefill": sparse, "spec_prefill_return_positions": True}
    params = {"temperature": 0, "max_new_tokens": ANSWER_TOKENS, "custom_params": custom}
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
    return Reply(last["meta_info"]["spec_prefill"], last["text"], time.perf_counter() - start, first - start)


def openai_chat(url: str, prompt: str) -> Reply:
    """The OpenAI chat route with the `openai` client; `return_meta_info` brings the reply object."""
    launch.flush(url)
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
    return Reply(info, chat.choices[0].message.content, total_s)


def frontend(url: str, document: str, question: str) -> Reply:
    """An SGLang frontend program. It has no place for custom_params, so the server's own settings hold."""
    launch.flush(url)

    @sgl.function
    def ask(s, document, question):
        s += document + question
        s += sgl.gen("answer", max_tokens=ANSWER_TOKENS, temperature=0)

    start = time.perf_counter()
    state = ask.run(document=document, question=question, backend=sgl.RuntimeEndpoint(url))
    info = state.get_meta_info("answer")["spec_prefill"]
    return Reply(info, state["answer"], time.perf_counter() - start)
