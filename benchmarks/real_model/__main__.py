"""`python -m benchmarks.real_model`: makes the folder of the real model, says what it is, or serves it as its own draft."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from benchmarks import launch
from benchmarks.real_model import RealModelError, folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_model", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="[path | serve]")
    commands.add_parser("path", help="print the folder alone")
    serving = commands.add_parser("serve", help="start SGLang on it, in the foreground, with itself as draft")
    launch.add_option(serving)
    arguments = parser.parse_args()
    try:
        made = folder()
    except RealModelError as error:
        sys.exit(f"real model: {error}")
    if arguments.command == "serve":
        serve(made, arguments.option)
    elif arguments.command == "path":
        print(made)
    else:
        print(report(made))


def report(made: Path) -> str:
    """Where it is, where it comes from, and what verifying it found when it was made."""
    origin = json.loads((made / "provenance.json").read_text())
    found = origin["verified"]
    answers = [f"{question} {answer}" for question, answer in found["answers"].items()]
    source = f"{origin['file']} of {origin['organization']} ({origin['license']}), from {origin['wheel']}"
    return "\n".join(
        [
            str(made),
            source,
            f"{found['parameters']:,} parameters; perplexity on held-out prose {found['perplexity']:.1f}",
            *answers,
        ]
    )


def serve(made: Path, options: tuple[str, ...]) -> None:
    """This process becomes the server; given options beat the defaults."""
    limits = {"dtype": "float32", "chunked_prefill_size": "2048", "max_total_tokens": "20000", "max_running_requests": "16"}
    words = launch.command(made, *launch.sparse_flags(made), *options, **limits)
    print(f"$ {shlex.join(words)}", flush=True)
    os.execve(words[0], words, {**os.environ, "PYTHONPATH": str(launch.ROOT)})


if __name__ == "__main__":
    main()
