"""`calibrate`: which of a model's heads find what a question asks for; writes the file that `--spec-prefill-heads` reads.

With `--layers` alone: how many of its first layers suffice for that, `--spec-prefill-layers` of the method early-layers.
"""

import argparse
import datetime
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from specprefill_sgl.calibration import kinds
from specprefill_sgl.cli.arguments import positive, ratios
from specprefill_sgl.selection.rule import Heads, preset

_WORDS_PER_TOKEN = 0.72
_EACH = 0  # `--layers` without a number
_RATIOS = (0.1, 0.2)


def main(argv: list[str]) -> None:
    """Reads the prompts with transformers; chooses heads or says how many first layers suffice."""
    arguments = _arguments(argv)
    if not (arguments.model / "config.json").exists():
        sys.exit(f"calibrate: {arguments.model} is no Hugging Face folder with a config.json.")
    if arguments.out is not None and not arguments.out.absolute().parent.is_dir():
        sys.exit(f"calibrate: the folder of {arguments.out} does not exist.")
    try:
        material = _material(arguments)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        sys.exit(f"calibrate: the prompts cannot be read: {error}.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    try:
        if arguments.layers == _EACH:
            _say_how_many(arguments, model, tokenizer, material)
        else:
            _choose(arguments, model, tokenizer, material, argv)
    except ValueError as error:
        sys.exit(f"calibrate: {error}.")


def _say_how_many(arguments: argparse.Namespace, model: Any, tokenizer: Any, material: list[kinds.Known]) -> None:
    from specprefill_sgl.cli import layers_table

    asked = arguments.keep_ratio or _RATIOS
    print(layers_table.report(model, tokenizer, material, heads=arguments.heads, ratios=asked, name=str(arguments.model)))


def _choose(arguments: argparse.Namespace, model: Any, tokenizer: Any, material: list[kinds.Known], argv: list[str]) -> None:
    """Ranks the heads, says how well they do on kinds they were not ranked by, writes the file."""
    from tqdm import tqdm

    from specprefill_sgl.calibration import heads_file, ranking

    rule = preset("best", ())
    found = [ranking.find(model, tokenizer, known, rule) for known in tqdm(material, desc="prompts")]
    # linear layers have no heads, and are not counted where heads are
    layers = None if arguments.layers is None else sum(number < arguments.layers for number in found[0].hidden)
    mean = ranking.scores(found)
    chosen = ranking.best_heads(mean, arguments.heads, layers)
    if not chosen:
        raise ValueError("no head votes for the evidence; have the prompts any, and these layers attention?")
    held_out = _held_out(found, chosen, arguments.heads, layers)
    print(_table(chosen, mean, held_out))
    provenance = {
        "command": " ".join(["python -m specprefill_sgl calibrate", *(word.rpartition("/")[2] for word in argv)]),
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "prompts": len(found),
        "tokens": round(sum(one.tokens for one in found) / len(found)),
        "window": rule.window,
        "votes": [round(float(mean[layer, head]), 4) for layer, head in chosen],
        "held_out": held_out,
    }
    heads_file.save(arguments.out, arguments.model, chosen, provenance)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m specprefill_sgl calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="Hugging Face folder of the draft, or of the target whose own layers vote")
    parser.add_argument("--out", type=Path, help="the file to write")
    parser.add_argument("--heads", type=positive, default=8, help="at most; default 8")
    layers = "choose from the first K layers only; without K, say what each number of first layers keeps, and write nothing"
    parser.add_argument("--layers", type=positive, nargs="?", const=_EACH, metavar="K", help=layers)
    about_ratios = "with --layers alone; default " + ",".join(map(str, _RATIOS))
    parser.add_argument("--keep-ratio", type=ratios, metavar="R,R", help=about_ratios)
    parser.add_argument("--prompts-per-kind", type=positive, default=12)
    parser.add_argument("--tokens", type=positive, default=1024, help="of a prompt, about")
    parser.add_argument("--text", type=Path, help="prose to hide the answers in; default: sentences from built-in words")
    parser.add_argument("--prompts", type=Path, help='own prompts, a JSON object a line: {"prompt": ..., "evidence": [...]}')
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    arguments = parser.parse_args(argv)
    if arguments.layers == _EACH and arguments.out is not None:
        parser.error("--layers without a number writes nothing: say how many layers, or leave --out away")
    if arguments.layers != _EACH and arguments.out is None:
        parser.error("--out is required, except with --layers without a number")
    if arguments.layers != _EACH and arguments.keep_ratio is not None:
        parser.error("--keep-ratio is read with --layers without a number only")
    return arguments


class _Row(msgspec.Struct):
    """A line of `--prompts`."""

    prompt: str
    evidence: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    kind: str = "own"


def _material(arguments: argparse.Namespace) -> list[kinds.Known]:
    if arguments.prompts is not None:
        rows = [msgspec.json.decode(line, type=_Row) for line in arguments.prompts.read_bytes().splitlines()]
        if not rows:
            raise ValueError(f"{arguments.prompts} is empty")
        return [kinds.Known(row.kind, row.prompt, row.evidence) for row in rows]
    filler = kinds.plain if arguments.text is None else kinds.from_text(arguments.text.read_text(encoding="utf-8"))
    words = round(arguments.tokens * _WORDS_PER_TOKEN)
    return [known for kind in kinds.KINDS for known in kinds.prompts(kind, arguments.prompts_per_kind, words, filler)]


def _held_out(found: list, chosen: Heads, count: int, layers: int | None) -> dict[str, list[float | None]]:
    """Kind -> mean votes for its evidence: of heads chosen by the other kinds, of those chosen by all, of every head."""
    from specprefill_sgl.calibration import ranking

    result = {}
    for kind in sorted({one.kind for one in found}):
        mine, others = ([one for one in found if (one.kind == kind) is same] for same in (True, False))
        votes = ranking.scores(mine)
        by_others = ranking.best_heads(ranking.scores(others), count, layers) if others else ()
        means = [sum(votes[pair] for pair in heads) / max(len(heads), 1) for heads in (by_others, chosen)]
        result[kind] = [_rounded(float(value)) for value in (*means, np.nanmean(votes))]
    return result


def _rounded(value: float) -> float | None:
    """None: the heads are in windowed layers, which did not see all of this kind's prompts."""
    return round(value, 4) if np.isfinite(value) else None


def _table(chosen: Heads, mean, held_out: dict[str, list[float | None]]) -> str:
    lines = ["layer  head  its votes for a token of the evidence"]
    lines += [f"{layer:5d} {head:5d}  {mean[layer, head]:.4f}" for layer, head in chosen]
    lines += ["", "kind: heads chosen by the other kinds, the chosen ones, every head"]
    lines += [f"{kind}: " + ", ".join(map(str, values)) for kind, values in held_out.items()]
    return "\n".join(lines)
