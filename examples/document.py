"""What every example asks: a document, a question about it, a running server (`--url`)."""

import argparse
from pathlib import Path


def arguments(description: str) -> argparse.Namespace:
    """The command line of an example; `document` is a text, `prompt` that text and the question after it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="of a server started with --spec-prefill")
    parser.add_argument("--document", type=Path, default=Path(__file__).parents[1] / "README.md", help="a text file")
    parser.add_argument("--question", default="\n\nIn one sentence: what is this text about?")
    parser.add_argument("--keep-ratio", type=float, default=0.2, help="share of the prompt's tokens that are kept")
    parser.add_argument("--max-tokens", type=int, default=32)
    values = parser.parse_args()
    values.document = values.document.read_text(encoding="utf-8")
    values.prompt = values.document + values.question
    return values


def show(answer: str, spec_prefill: dict) -> None:
    """The answer, and from the reply object what was kept of the prompt, or why all of it was."""
    print(answer)
    if spec_prefill["applied"]:
        print(f"kept {spec_prefill['kept_tokens']} of {spec_prefill['prompt_tokens']} prompt tokens")
    else:
        print(f"dense: {spec_prefill['reason']}")
