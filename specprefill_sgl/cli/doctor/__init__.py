"""`doctor`: does Speculative Prefill work on this machine? Versions, kernels, answers and speed of real servers, in minutes.

It is what a first user with a GPU runs. Each step is a process of its own, so that one that crashes takes no other with it;
what cannot be run here is listed as such. The exit status is 0 if nothing failed.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from specprefill_sgl.cli.doctor import checks, report, steps


def main(argv: list[str]) -> None:
    """Prints a table; writes checks.jsonl, provenance first, and the logs of all servers into a folder."""
    parser = argparse.ArgumentParser(prog="python -m specprefill_sgl doctor", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("doctor"), help="folder; what is in it is removed")
    parser.add_argument("--budget", type=float, default=600, help="seconds after which no further step begins")
    parser.add_argument("--backends", nargs="+", help="attention backends, else all that are here")
    parser.add_argument("--only", nargs="+", help="steps, by the first word of their names")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.step:
        steps.run_here(arguments.step, arguments.out)
        return
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    (arguments.out / checks.FILE).write_text(report.provenance(argv) + "\n")
    ends = time.monotonic() + arguments.budget
    for name in steps.names(arguments.backends):
        if arguments.only and name.split()[0] not in arguments.only:
            continue
        print(f"doctor: {name} ...", file=sys.stderr, flush=True)
        steps.run(name, arguments.out, ends)
    found = checks.read(arguments.out)
    print(report.table(found))
    sys.exit(report.verdict(found, arguments.out))
