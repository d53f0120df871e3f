"""Commands: `python -m specprefill_sgl check` and its like.

`check`: can this be served? `doctor`: does it work on this machine? `explain`: what was kept, and why? `playground`: a page to
try it on. `tune`: which keep ratio? `calibrate`: who votes? `train-predictor`: fits what kv-prediction, experimental, predicts
with.
"""

import importlib
import sys

_COMMANDS = ("calibrate", "check", "doctor", "explain", "playground", "train-predictor", "tune")


def main() -> None:
    """Dispatch to a command; each reads its own arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in _COMMANDS:
        sys.exit(f"usage: python -m specprefill_sgl {{{','.join(_COMMANDS)}}} ...")
    importlib.import_module(f"specprefill_sgl.cli.{name.replace('-', '_')}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
