"""`python -m specprefill_sgl check`: can this be served? `... explain`: what was kept of a prompt, and why?"""

import sys

_COMMANDS = ("check", "explain")


def main() -> None:
    """Dispatch to a command; each reads its own arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in _COMMANDS:
        sys.exit(f"usage: python -m specprefill_sgl {{{','.join(_COMMANDS)}}} ...")
    if name == "check":
        from specprefill_sgl.cli import check as command
    else:
        from specprefill_sgl.cli import explain as command  # type: ignore[no-redef]
    command.main(sys.argv[2:])


if __name__ == "__main__":
    main()
