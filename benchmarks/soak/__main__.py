"""Soak: a random mix of requests against a pool so small that eviction and retraction happen all the time.

`python -m benchmarks.soak` serves the shipped pair and fails unless there were no server errors, no hangs, no wrong answers and
nothing is left in the pools. It prints the slope of the server's memory.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import launch
from benchmarks.soak.run import RECOVERY, run, slope


def main() -> None:
    """Exit status 0 if the server held out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--in-flight", type=int, nargs=2, default=(8, 64), metavar=("LOW", "HIGH"), help="goes up and down")
    parser.add_argument("--pool", type=int, default=4000, help="--max-total-tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recovery", action="store_true", help="requests besides whose dropped tokens come back")
    launch.add_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(
            Path(folder),
            arguments.minutes,
            arguments.in_flight,
            seed=arguments.seed,
            pool=arguments.pool,
            option=arguments.option,
            more=RECOVERY if arguments.recovery else {},
        )
    print(json.dumps({"counts": outcome.counts, "memory_slope_mib_per_minute": slope(outcome.memory)}, indent=2))
    for problem in outcome.problems[:20]:
        print("problem: " + problem)
    sys.exit(1 if outcome.problems else 0)


if __name__ == "__main__":
    main()
