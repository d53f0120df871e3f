"""Serves the shipped pair, asks for facts in a long document dense and sparse on every route, checks every answer."""

import argparse
import sys
from pathlib import Path

from benchmarks import launch
from benchmarks.demo import client, table
from benchmarks.demo.document import Document, document

PLAYGROUND = "python -m specprefill_sgl playground  # then open http://127.0.0.1:30080"


def main() -> None:
    """Exit status 0 if Speculative Prefill was applied on every route and every answer was right."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--target", type=Path, default=launch.TARGET)
    parser.add_argument("--draft", type=Path, default=launch.DRAFT)
    parser.add_argument("--tokens", type=int, default=6000, help="length of the document")
    parser.add_argument("--keep-ratio", type=float, default=0.1)
    parser.add_argument("--log", type=Path, default=launch.ROOT / ".demo" / "server.log")
    arguments = parser.parse_args()
    try:
        _run(arguments)
    except (client.DemoError, launch.LaunchError) as error:
        sys.exit(f"demo: {error}")


def _run(arguments: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.target)
    asked = document(lambda piece: len(tokenizer.encode(piece)), arguments.tokens)
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    words = _command(arguments)
    print("$ " + " ".join(["python", *words[1:]]), flush=True)
    with launch.serve(words, arguments.log) as url:
        _ask(url, asked, *asked.questions[0], sparse=False), _ask(url, asked, *asked.questions[0], sparse=True)  # warm-up
        pairs = []
        for number, (question, answer) in enumerate(asked.questions):
            print(f"question {number + 1} of {len(asked.questions)}: {question}", flush=True)
            pairs.append(tuple(_ask(url, asked, question, answer, sparse=sparse) for sparse in (False, True)))
        question, answer = asked.questions[-1]
        others = {
            "OpenAI chat": client.openai_chat(url, _prompt(asked, question)),
            "@sgl.function": client.frontend(url, asked.prose, "\n\n" + question),
        }
        for route, reply in others.items():
            _check(route, reply, answer, sparse=True)
    ids = tokenizer.encode(_prompt(asked, question))
    print("\n" + table.highlighted(tokenizer, ids, pairs[-1][1].spec_prefill["positions"]))
    print("\n" + table.table(asked.questions, pairs, others))
    print("\nEvery answer was checked. Times are of one run on this machine; both kinds start with an empty radix cache.")
    print(f"A document of your own: start the server again (the command above), and in another terminal\n$ {PLAYGROUND}")


def _command(arguments: argparse.Namespace) -> list[str]:
    heads = {"heads": launch.HEADS} if arguments.draft == launch.DRAFT else {}
    sparse = launch.sparse_flags(arguments.draft, keep_ratio=arguments.keep_ratio, **heads)
    limits = {"chunked_prefill_size": "2048", "max_total_tokens": "20000", "max_running_requests": "8"}
    return launch.command(arguments.target, *sparse, dtype="float32", **limits)


def _prompt(asked: Document, question: str) -> str:
    return f"{asked.prose}\n\n{question}"


def _ask(url: str, asked: Document, question: str, answer: str, *, sparse: bool) -> client.Reply:
    reply = client.generate(url, _prompt(asked, question), sparse=sparse)
    _check(f"/generate, {question!r}", reply, answer, sparse=sparse)
    return reply


def _check(what: str, reply: client.Reply, answer: str, *, sparse: bool) -> None:
    info = reply.spec_prefill
    if info["applied"] != sparse or (info["kept_tokens"] < info["prompt_tokens"]) != sparse:
        raise client.DemoError(f"{what} was not served {'sparse' if sparse else 'dense'}: {info['reason']}")
    if not reply.text.strip().startswith(answer.strip()):
        raise client.DemoError(f"{what} was answered {reply.text!r}, not {answer!r}")


if __name__ == "__main__":
    main()
