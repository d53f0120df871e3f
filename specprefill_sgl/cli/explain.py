"""`explain`: sends a prompt to a server and shows which chunks were kept and how each scored, in the terminal and as HTML."""

import argparse
import html
import sys
from pathlib import Path
from typing import Any, NamedTuple

_LEVELS = 5  # shades of a score
_TERMINAL = (255, 230, 223, 216, 209, 203)  # 256-colour backgrounds, pale to strong
_PAGE = """<!doctype html><meta charset="utf-8"><title>specprefill explain</title>
<style>body{{font:14px/1.5 monospace;max-width:100ch;margin:2em auto;white-space:pre-wrap}}
span{{background:rgba(255,80,40,var(--s))}}.dropped{{opacity:.35}}</style>
<p>{summary}</p><div>{chunks}</div>"""


class Chunk(NamedTuple):
    """Text of a chunk, its score (mean importance of its tokens), whether it was kept."""

    text: str
    score: float
    kept: bool


def main(argv: list[str]) -> None:
    """Prints the heat map; exit status 1 if the prompt was not handled by Speculative Prefill."""
    parser = argparse.ArgumentParser(prog="python -m specprefill_sgl explain", description=__doc__)
    parser.add_argument("prompt", type=Path, help="file with the prompt's text")
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="a server started with --spec-prefill")
    parser.add_argument("--keep-ratio", type=float)
    parser.add_argument("--tokenizer", help="default: the path of the server's model")
    parser.add_argument("--html", type=Path, help="where to write the page")
    arguments = parser.parse_args(argv)
    info, size, ids, decode = _ask(arguments)
    summary = f"{info['kept_tokens']} of {info['prompt_tokens']} tokens kept, draft {info['draft_ms']} ms"
    if not info["applied"] or "scores" not in info:
        sys.exit(f"explain: {info['reason'] or 'nothing was scored: the whole prompt is kept'}")
    found = chunks(ids, decode, size, info["scores"], info["positions"])
    print(terminal(found) + "\n\n" + summary)
    if arguments.html is not None:
        arguments.html.write_text(page(found, summary), encoding="utf-8")


def chunks(ids: list[int], decode: Any, size: int, scores: list[float], positions: list[int]) -> list[Chunk]:
    """A chunk is kept if its last token is."""
    kept = set(positions)
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [
        Chunk(decode(part), score, at * size + len(part) - 1 in kept)
        for at, (part, score) in enumerate(zip(parts, scores, strict=True))
    ]


def terminal(found: list[Chunk]) -> str:
    """Kept chunks bright, dropped ones dim; the background tells the score."""
    return "".join(
        f"\033[{'1;30' if chunk.kept else '2;37'};48;5;{_TERMINAL[level] if chunk.kept else 236}m{chunk.text}\033[0m"
        for chunk, level in zip(found, _levels(found), strict=True)
    )


def page(found: list[Chunk], summary: str) -> str:
    """One self-contained HTML page."""
    spans = [
        f'<span class="{"kept" if chunk.kept else "dropped"}" style="--s:{level / _LEVELS}" '
        f'title="chunk {number}, score {chunk.score:.3g}">{html.escape(chunk.text)}</span>'
        for number, (chunk, level) in enumerate(zip(found, _levels(found), strict=True))
    ]
    return _PAGE.format(summary=html.escape(summary), chunks="".join(spans))


def _levels(found: list[Chunk]) -> list[int]:
    """0 for the lowest scores to `_LEVELS` for the highest, by rank."""
    order = sorted(range(len(found)), key=lambda at: found[at].score)
    rank = {at: place for place, at in enumerate(order)}
    return [round(_LEVELS * rank[at] / max(1, len(found) - 1)) for at in range(len(found))]


def _ask(arguments: argparse.Namespace) -> tuple[dict, int, list[int], Any]:
    import requests
    from transformers import AutoTokenizer

    server = requests.get(arguments.url + "/server_info", timeout=60).json()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or server["tokenizer_path"] or server["model_path"])
    ids = tokenizer.encode(arguments.prompt.read_text(encoding="utf-8"))
    custom = {"spec_prefill": True, "spec_prefill_return_positions": True, "spec_prefill_return_scores": True}
    if arguments.keep_ratio is not None:
        custom["spec_prefill_keep_ratio"] = arguments.keep_ratio
    body = {"input_ids": ids, "sampling_params": {"max_new_tokens": 1, "custom_params": custom}}
    response = requests.post(arguments.url + "/generate", json=body, timeout=600)
    if response.status_code != 200:
        sys.exit(f"explain: {arguments.url} answered {response.status_code}: {response.text}")
    size = server["internal_states"][0]["spec_prefill"]["chunk_size"]
    return response.json()["meta_info"]["spec_prefill"], size, ids, tokenizer.decode
