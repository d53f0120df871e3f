"""Is the converted folder the model it should be? Everything with transformers, in float32."""

import math
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import text
from benchmarks.real_model.errors import RealModelError

PARAMETERS = 134_515_008
WINDOW, WINDOWS = 2048, 2
PERPLEXITY_BELOW = 70  # see `verify`
QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the opposite of hot?": "cold",
    "How many days are in a week?": "7",
}
_ODD_TEXT = "On 2024-11-26 it cost 1,234,567.89\tfor «naïve» 東京 users 🙂\n\n  def f(x):\n\treturn x  # it's fine"


def verify(folder: Path) -> dict:
    """Parameters, tokenizer, perplexity on held-out prose and three chat answers; returns what was found.

    The perplexity is 65 (4 bits, tuned for chat, prose of 1851). Measured with mistakes: all query and key rows left in GGUF's
    order about 400, only the queries of one layer 77, a rotary base of 1e4 in place of 1e5 78, of 1e6 72.

    Raises
    ------
    RealModelError
        One of them is not as it should be.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prose = text.book("moby_dick", held_out=True)
    found = {
        "parameters": model.num_parameters(),
        "perplexity": perplexity(model, tokenizer.encode(prose, verbose=False)),
        "answers": {question: answer(model, tokenizer, question) for question in QUESTIONS},
    }
    for what in (_ODD_TEXT, prose):
        if tokenizer.decode(tokenizer.encode(what, verbose=False)) != what:
            raise RealModelError(f"the tokenizer does not give back a text that begins with {what[:40]!r}")
    _check(found)
    return found


def perplexity(model, ids: list[int]) -> float:
    """Of windows spread evenly over `ids`, each read alone, without a first token of its own."""
    starts = [at * len(ids) // WINDOWS for at in range(WINDOWS)]
    return math.exp(sum(_loss(model, torch.tensor([ids[start : start + WINDOW]])) for start in starts) / WINDOWS)


@torch.no_grad()
def answer(model, tokenizer, question: str) -> str:
    """At most 16 greedy tokens in chat format."""
    message = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


@torch.no_grad()
def _loss(model, ids: torch.Tensor) -> float:
    return cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:]).item()


def _check(found: dict) -> None:
    if found["parameters"] != PARAMETERS:
        raise RealModelError(f"the model has {found['parameters']:,} parameters, not {PARAMETERS:,}")
    if not found["perplexity"] < PERPLEXITY_BELOW:
        raise RealModelError(f"perplexity on held-out prose is {found['perplexity']:.0f}, not below {PERPLEXITY_BELOW}")
    for question, wanted in QUESTIONS.items():
        if wanted not in found["answers"][question]:
            raise RealModelError(f"{question!r} is answered {found['answers'][question]!r}, without {wanted!r}")
