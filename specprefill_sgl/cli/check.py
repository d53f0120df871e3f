"""`check`: what of a server's flags works together and what is refused, and the memory it takes, without starting one."""

import sys
from importlib.metadata import version

_PACKAGES = ("specprefill-sgl", "sglang", "torch", "transformers")


def main(argv: list[str]) -> None:
    """The arguments are those of `sglang.launch_server`; exit status 0 if the server would start.

    A server that does not names the first thing it refuses. Here all options that are refused are named.
    """
    print("versions: " + ", ".join(f"{name} {version(name)}" for name in _PACKAGES))
    if not argv or argv[0] in ("-h", "--help"):
        sys.exit(
            "usage: python -m specprefill_sgl check --model-path TARGET --spec-prefill-draft-model-path DRAFT [server flags]"
        )
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.server_args import prepare_server_args

    from specprefill_sgl import compat
    from specprefill_sgl.cli import memory
    from specprefill_sgl.hooks import HOOKS, verify
    from specprefill_sgl.hooks.attachment import attached
    from specprefill_sgl.hooks.launch import check_at_start, config_of
    from specprefill_sgl.methods import registry

    server_args = prepare_server_args([*argv, *([] if "--spec-prefill" in argv else ["--spec-prefill"])])
    verify()
    print(f"hooks: {len(HOOKS)} of {len(HOOKS)} in place, attached by {attached()}")
    server_args.resolve_once()
    for row in compat.working(server_args):
        print(f"works with {row.option}: {row.status}" + (f"; {row.note}" if row.note else ""))
    config = config_of(server_args)
    assert config is not None  # the flag is there
    if refused := [*compat.refusals(server_args), *registry.refusals(config, server_args)]:
        sys.exit("\n".join(f"specprefill-sgl: {sentence}" for sentence in refused))
    check_at_start(None, server_args)
    print("server flags, target, draft and tokenizers: compatible")
    for warning in registry.warnings(config, server_args):
        print(warning)
    for line in memory.report(config_of(server_args), server_args):
        print(line)
