"""`tune`: asks a server your own prompts dense and at several keep ratios, compares, and proposes the smallest that does."""

import argparse
import sys
from pathlib import Path
from typing import Any

import msgspec

from specprefill_sgl.cli.arguments import positive, ratios
from specprefill_sgl.config import flag

_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5)


class _Row(msgspec.Struct):
    """A line of a JSONL file."""

    prompt: str


def main(argv: list[str]) -> None:
    """Prints the table and the proposal; exit status 1 if no prompt was served sparse."""
    arguments = _arguments(argv)
    try:
        prompts: list[Any] = [prompt for path in arguments.prompts for prompt in _read(path)]
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        sys.exit(f"tune: the prompts cannot be read: {error}.")
    from specprefill_sgl.cli import tuning

    custom = {name: value for name in ("method", "selection") if (value := getattr(arguments, name)) is not None}
    try:
        if arguments.chat:
            prompts = tuning.as_chats(arguments.url, prompts, arguments.tokenizer)
        asked = tuning.ask_all(arguments.url, prompts, arguments.keep_ratio, arguments.answer_tokens, custom)
    except tuning.TuneError as error:
        sys.exit(f"tune: {error}")
    if arguments.out is not None:
        arguments.out.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in asked.rows))
    for reason, numbers in asked.dense.items():
        print(f"served dense, not counted ({reason}): prompts {', '.join(map(str, numbers))}")
    if not asked.rows:
        sys.exit("tune: no prompt was served sparse.")
    print(_table(asked.summaries))
    print(_proposal(asked, arguments.tolerance))


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m specprefill_sgl tune", description=__doc__)
    what = 'files of your own prompts: .jsonl, {"prompt": ...} a line; any other file is one prompt'
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, metavar="FILE", help=what)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="a server started with --spec-prefill")
    parser.add_argument("--keep-ratio", type=ratios, default=_RATIOS, metavar="R,R", help="default 0.05,0.1,0.2,0.3,0.5")
    parser.add_argument("--answer-tokens", type=positive, default=64, help="that are compared; default 64")
    parser.add_argument("--tolerance", type=float, default=0.1, help="of the agreement, below dense asked twice; default 0.1")
    parser.add_argument("--chat", action="store_true", help="send each prompt as a user's message, in the chat template")
    parser.add_argument("--tokenizer", help="with --chat; default: the path of the server's model")
    parser.add_argument("--method", help="default: the server's")
    parser.add_argument("--selection", help="default: the server's")
    parser.add_argument("--out", type=Path, help="where to write every comparison, a JSON object a line")
    return parser.parse_args(argv)


def _read(path: Path) -> list[str]:
    if path.suffix != ".jsonl":
        return [path.read_text(encoding="utf-8")]
    return [msgspec.json.decode(line, type=_Row).prompt for line in path.read_bytes().splitlines() if line.strip()]


def _table(summaries: list[Any]) -> str:
    head = ("keep ratio", "kept", "same [95 %]", "same answers", "loss, nats [95 %]", "dense / sparse TTFT [95 %]")
    rows = [head, *(_row(one) for one in summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(one: Any) -> tuple[str, ...]:
    name = "dense again" if one.keep_ratio is None else f"{one.keep_ratio:g}"
    same = f"{one.answers} of {one.prompts}"
    return name, f"{one.kept:.2f}", _interval(one.same), same, _interval(one.loss), _interval(one.speedup)


def _interval(values: tuple[float, float, float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def _proposal(asked: Any, tolerance: float) -> str:
    best = asked.proposed(tolerance)
    (again, _, _), prompts = asked.again.same, asked.again.prompts
    limit = f"{tolerance:g} below dense asked twice ({again:.2f})"
    note = "same: share of the dense answer's tokens before the first difference. Another answer need not be a worse one.\n"
    if best is None:
        return f"{note}None of these keep ratios is within {limit}. Calibrate heads, try higher ones, or let tokens return."
    lines = f"{note}Proposed: {flag('keep_ratio')} {best.keep_ratio:g}: the smallest within {limit}, over {prompts} prompts."
    if best.same[1] < again - tolerance:
        lines += "\nIts interval reaches below that: more prompts would tell."
    changed = ", ".join(map(str, asked.changed_most(best.keep_ratio)))
    return lines + (f"\nChanged most there: prompts {changed}." if changed else "\nNo answer changed there.")
