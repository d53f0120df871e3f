"""`train-predictor`: fits the predictor of the method kv-prediction, experimental, to text, and writes its folder.

By ridge regression in closed form, in a server's own process: the auxiliary model is the draft, or with --first-layers the
target's own. All other arguments are those of `sglang.launch_server`.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from specprefill_sgl.methods.kv_prediction import plan, predictor_file

_MOST_FEATURES = 8192  # of a layer: the sums of a regression are their square


def main(argv: list[str]) -> None:
    """Exit status 0 once the predictor is written; its R2 by layer is printed."""
    arguments, server_flags = _arguments(argv)
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.server_args import prepare_server_args

    from specprefill_sgl.hooks.launch import config_of

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plan.json")
        os.environ[plan.ENVIRONMENT_VARIABLE] = str(file)
        words = ["--spec-prefill", "--spec-prefill-method", "kv-prediction", "--spec-prefill-predictor", str(arguments.out)]
        server_args = prepare_server_args([*server_flags, *words])
        if server_args.tp_size > 1:
            sys.exit("train-predictor: --tp-size must be 1; the predictor serves any.")
        pieces = Path(folder, "pieces.npz")
        try:
            count = _cut(arguments, server_args, pieces)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            sys.exit(f"train-predictor: {arguments.text} cannot be read: {error}.")
        about = _about(arguments, server_args, config_of(server_args), argv, count)
        wanted = plan.Plan(
            about=about, pieces=str(pieces), ridge=arguments.ridge, dtype=arguments.weights, out=str(arguments.out)
        )
        file.write_bytes(msgspec.json.encode(wanted))
        import sglang

        sglang.Engine(server_args=server_args).shutdown()
    found = predictor_file.about(str(arguments.out))
    print("layer  R2 of keys  R2 of values, on pieces that it was not fitted on")
    for layer, keys, values in zip(found.predicted, found.key_r2, found.value_r2, strict=True):
        print(f"{layer:5d}  {keys:10.3f}  {values:12.3f}")


def _arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m specprefill_sgl train-predictor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = 'plain text, or a .jsonl file of {"text": ...}, each a prompt of its own'
    parser.add_argument("--text", type=Path, required=True, help=text)
    parser.add_argument("--out", type=Path, required=True, help="the predictor's folder")
    parser.add_argument("--first-layers", type=int, metavar="K", help="the auxiliary model is the target's first K layers")
    near = "of the draft, nearest in depth, that a layer of the target is computed from; default 1, as the paper"
    parser.add_argument("--draft-layers", type=int, default=1, metavar="N", help=near)
    parser.add_argument("--tokens", type=int, default=200_000, help="at most; default 200000")
    parser.add_argument("--length", type=int, default=1024, help="of a piece of text in tokens; default 1024")
    parser.add_argument("--ridge", type=float, default=1e-4, help="penalty, in mean variances of a feature; default 1e-4")
    parser.add_argument("--weights", choices=("bfloat16", "float32"), default="bfloat16", help="their dtype; default bfloat16")
    arguments, server_flags = parser.parse_known_args(argv)
    return arguments, server_flags


def _cut(arguments: argparse.Namespace, server_args: Any, file: Path) -> int:
    """Write the text's tokens in pieces; how many tokens there are."""
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    path = server_args.tokenizer_path or server_args.model_path
    tokenizer = get_tokenizer(path, trust_remote_code=server_args.trust_remote_code)
    text = arguments.text.read_text(encoding="utf-8")
    texts = [json.loads(line)["text"] for line in text.splitlines()] if arguments.text.suffix == ".jsonl" else [text]
    pieces: list[list[int]] = []
    for one in texts:
        ids = tokenizer.encode(one, add_special_tokens=False)
        pieces += [ids[at : at + arguments.length] for at in range(0, len(ids), arguments.length)]
        if sum(map(len, pieces)) >= arguments.tokens:
            break
    pieces = [piece for piece in pieces if 2 * len(piece) > arguments.length][: max(arguments.tokens // arguments.length, 1)]
    if len(pieces) < 10:
        raise ValueError(f"it has {len(pieces)} pieces of {arguments.length} tokens; ten are needed")
    np.savez(file, ids=np.concatenate([np.array(one, np.int64) for one in pieces]), lengths=[len(one) for one in pieces])
    return sum(map(len, pieces))


def _about(arguments: argparse.Namespace, server_args: Any, config: Any, argv: list[str], tokens: int) -> predictor_file.About:
    """What the predictor is to be."""
    from specprefill_sgl import compat
    from specprefill_sgl.calibration.fingerprint import fingerprint, local_folder

    target = compat.target_model_config(server_args)
    layers, draft = target.num_hidden_layers, None
    if arguments.first_layers is None:
        if config.draft_model_path is None:
            sys.exit("train-predictor: --first-layers or --spec-prefill-draft-model-path is needed.")
        draft = fingerprint(local_folder(config.draft_model_path))
        model = compat.draft_model_config(config, server_args, target=target)
        numbers = 2 * model.get_total_num_kv_heads() * model.head_dim
        sources = tuple(_nearest(layer, layers, model.num_hidden_layers, arguments.draft_layers) for layer in range(layers))
        features = numbers * len(sources[0])
    elif 1 <= arguments.first_layers <= layers:
        sources, features = ((),) * (layers - arguments.first_layers), target.hidden_size
    else:
        sys.exit(f"train-predictor: --first-layers must be in [1, {layers}], got {arguments.first_layers}.")
    if features > _MOST_FEATURES:
        sys.exit(f"train-predictor: {features} features of a layer are too many; --draft-layers makes them fewer.")
    return predictor_file.About(
        target=fingerprint(local_folder(server_args.model_path)),
        draft=draft,
        layers=arguments.first_layers or 0,
        sources=sources,
        kv_heads=target.get_total_num_kv_heads(),
        head_dim=target.head_dim,
        value_dim=target.v_head_dim,
        provenance={
            "command": " ".join(["python -m specprefill_sgl train-predictor", *(word.rpartition("/")[2] for word in argv)]),
            "date": datetime.date.today().isoformat(),
            "versions": {name: version(name) for name in ("sglang", "torch")},
            "tokens": tokens,
            "ridge": arguments.ridge,
        },
    )


def _nearest(layer: int, layers: int, of_draft: int, count: int) -> tuple[int, ...]:
    """So many of the draft's layers, around the one at the same relative depth."""
    count = min(count, of_draft)
    first = min(max(layer * of_draft // layers - (count - 1) // 2, 0), of_draft - count)
    return tuple(range(first, first + count))
