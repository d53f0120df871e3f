"""`explain`: sends a prompt to a server and shows which chunks were kept, how each scored and who asked for it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from specprefill_sgl.cli import heatmap
from specprefill_sgl.playground import explained, page
from specprefill_sgl.playground.prompt import Prompt, read
from specprefill_sgl.selection.rule import PRESETS


def main(argv: list[str]) -> None:
    """Prints the heat map; exit status 1 if the prompt was not handled by Speculative Prefill."""
    parser = argparse.ArgumentParser(prog="python -m specprefill_sgl explain", description=__doc__)
    parser.add_argument("prompt", type=Path, help="file with the prompt's text")
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="a server started with --spec-prefill")
    parser.add_argument("--keep-ratio", type=float)
    parser.add_argument("--tokenizer", help="default: the path of the server's model")
    parser.add_argument("--selection", choices=PRESETS, help="default: the server's")
    parser.add_argument("--votes", action="store_true", help="which token of the question or the lookahead asked for what")
    parser.add_argument("--html", type=Path, help="where to write the page: the playground's map, in one file")
    arguments = parser.parse_args(argv)
    info, prompt = _ask(arguments)
    summary = f"{info['kept_tokens']} of {info['prompt_tokens']} tokens kept, draft {info['draft_ms']} ms"
    if not info["applied"] or "scores" not in info:
        sys.exit(f"explain: {info['reason'] or 'nothing was scored: the whole prompt is kept'}")
    asked = explained.queries(info["votes"], len(prompt.ids), prompt.decode)
    found = explained.chunks(prompt, info, asked)
    print(heatmap.terminal(found) + "\n\n" + summary)
    if arguments.votes:
        print("\n" + heatmap.wishes(found, asked))
    if arguments.html is not None:
        arguments.html.write_text(page.standalone(explained.plain(found, info)), encoding="utf-8")


def _ask(arguments: argparse.Namespace) -> tuple[dict[str, Any], Prompt]:
    import requests
    from transformers import AutoTokenizer

    server = requests.get(arguments.url + "/server_info", timeout=60).json()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or server["tokenizer_path"] or server["model_path"])
    prompt = read(tokenizer, arguments.prompt.read_text(encoding="utf-8"))
    custom = {"spec_prefill": True, **{f"spec_prefill_return_{name}": True for name in ("positions", "scores", "votes")}}
    for name in ("keep_ratio", "selection"):
        if (value := getattr(arguments, name)) is not None:
            custom[f"spec_prefill_{name}"] = value
    body = {"input_ids": prompt.ids, "sampling_params": {"max_new_tokens": 1, "custom_params": custom}}
    response = requests.post(arguments.url + "/generate", json=body, timeout=600)
    if response.status_code != 200:
        sys.exit(f"explain: {arguments.url} answered {response.status_code}: {response.text}")
    return response.json()["meta_info"]["spec_prefill"], prompt
