"""`check`: everything a server with these flags would check at start, and the memory it takes, without starting one."""

import sys
from importlib.metadata import version

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

    from specprefill_sgl.cli import memory
    from specprefill_sgl.hooks import HOOKS, verify
    from specprefill_sgl.hooks.launch import check_at_start, config_of

    server_args = prepare_server_args([*argv, *([] if "--spec-prefill" in argv else ["--spec-prefill"])])
    verify()
    print(f"hooks: {len(HOOKS)} of {len(HOOKS)} in place")
    server_args.resolve_once()
    check_at_start(None, server_args)
    print("server flags, target, draft and tokenizers: compatible")
    for line in memory.report(config_of(server_args), server_args):
        print(line)
