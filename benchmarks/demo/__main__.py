"""Builds the models if need be, serves them, asks the same question dense and sparse, prints what happened."""

import argparse
import sys
from pathlib import Path

from benchmarks.demo import client, models, table
from benchmarks.demo.document import QUESTION, document
from benchmarks.demo.server import DemoError, serve

_ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Exit status 0 if Speculative Prefill was applied on every route."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--models", type=Path, default=_ROOT / ".demo", help="where the models are or will be")
    parser.add_argument("--tokens", type=int, default=6000, help="length of the document")
    parser.add_argument("--keep-ratio", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=3, help="timed requests of each kind")
    arguments = parser.parse_args()
    try:
        _run(arguments)
    except DemoError as error:
        sys.exit(f"demo: {error}")


def _run(arguments: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    target, draft = models.ensure(arguments.models)
    tokenizer = AutoTokenizer.from_pretrained(target)
    text = document(tokenizer, arguments.tokens)
    prompt = text + QUESTION
    log = arguments.models / "server.log"
    with serve(target, draft, log, keep_ratio=arguments.keep_ratio) as url:
        client.generate(url, prompt, sparse=False), client.generate(url, prompt, sparse=True)  # warm-up
        dense, sparse = [], []
        for repeat in range(arguments.repeats):
            print(f"dense and sparse, {repeat + 1} of {arguments.repeats}", flush=True)
            dense.append(client.generate(url, prompt, sparse=False))
            sparse.append(client.generate(url, prompt, sparse=True))
        others = {"OpenAI chat": client.openai_chat(url, prompt), "@sgl.function": client.frontend(url, text, QUESTION)}
    _check(tokenizer, prompt, dense, [*sparse, *others.values()])
    ids = tokenizer.encode(prompt)
    print("\n" + table.highlighted(tokenizer, ids, sparse[0].spec_prefill["positions"]))
    print("\n" + table.table(dense, sparse, others))
    print("\nTTFTs are medians of one run on this machine; both kinds start with an empty radix cache.")
    print("The demo's weights are random: it shows speed and what was kept, not answers.")


def _check(tokenizer, prompt: str, dense: list[client.Timed], sparse: list[client.Timed]) -> None:
    for one in sparse:
        info = one.spec_prefill
        if not info["applied"] or info["kept_tokens"] >= info["prompt_tokens"]:
            raise DemoError(f"a request was not served sparse: {info['reason']}")
    for one in dense:
        if one.spec_prefill["applied"] or one.spec_prefill["prompt_tokens"] != len(tokenizer.encode(prompt)):
            raise DemoError(f"a dense request was not served dense: {one.spec_prefill}")


if __name__ == "__main__":
    main()
