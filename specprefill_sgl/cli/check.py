"""`check`: everything a server with these flags would check at start, and the memory its draft takes, without starting one."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("specprefill-sgl", "sglang", "torch", "transformers")


def main(argv: list[str]) -> None:
    """The arguments are those of `sglang.launch_server`; exit status 0 if the server would start."""
    print("versions: " + ", ".join(f"{name} {version(name)}" for name in _PACKAGES))
    if not argv or argv[0] in ("-h", "--help"):
        sys.exit(
            "usage: python -m specprefill_sgl check --model-path TARGET --spec-prefill-draft-model-path DRAFT [server flags]"
        )
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.server_args import prepare_server_args

    from specprefill_sgl.hooks import HOOKS, verify
    from specprefill_sgl.hooks.launch import check_at_start, config_of

    server_args = prepare_server_args([*argv, *([] if "--spec-prefill" in argv else ["--spec-prefill"])])
    verify()
    print(f"hooks: {len(HOOKS)} of {len(HOOKS)} in place")
    server_args.resolve_once()
    check_at_start(None, server_args)
    print("server flags, target, draft and tokenizers: compatible")
    for line in _memory(config_of(server_args), server_args):
        print(line)


def _memory(config: Any, server_args: Any) -> list[str]:
    """Per tensor-parallel rank; weights from the files, pools from the shapes."""
    from sglang.srt.arg_groups.overrides import resolving_view

    from specprefill_sgl import compat
    from specprefill_sgl.draft.sizes import pool_tokens

    args = resolving_view(server_args)
    draft = compat.draft_model_config(config, server_args, target=compat.target_model_config(server_args))
    ranks = args.tp_size
    files = [file.stat().st_size for kind in ("safetensors", "bin") for file in Path(config.draft_model_path).glob(f"*.{kind}")]
    weights = f"{sum(files) / ranks / 2**20:.0f} MiB in the files, per rank" if files else "not in a folder here"
    tokens = pool_tokens(config, draft.context_len, args.page_size or 1)
    slot = 2 * draft.num_hidden_layers * draft.get_num_kv_heads(ranks) * draft.head_dim * draft.dtype.itemsize
    heads = draft.num_attention_heads // draft.get_total_num_kv_heads()
    scratch = 2 * config.lookahead * heads * draft.context_len * 4
    return [
        f"draft weights: {weights}",
        f"draft KV pool: {tokens} tokens, {tokens * slot / 2**20:.0f} MiB",
        f"scoring scratch, one prompt of {draft.context_len} tokens: {scratch / 2**20:.0f} MiB",
    ]
