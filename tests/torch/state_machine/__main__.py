"""Runs the machine for as long as is asked for: `python -m tests.torch.state_machine --minutes 10 --seed 1`."""

from __future__ import annotations

import argparse
import time

from tests.torch.state_machine.running import coverage, run


def main() -> None:
    """Stops at the first failure, which hypothesis has shrunk and printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torch.state_machine", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="of the first round; each round has the next")
    parser.add_argument("--examples", type=int, default=25, help="in a round")
    options = parser.parse_args()
    first = int(time.time()) if options.seed is None else options.seed
    begin, number = time.perf_counter(), first
    try:
        while time.perf_counter() - begin < 60 * options.minutes:
            run(number, options.examples)
            number += 1
    finally:
        seconds = time.perf_counter() - begin
        print(coverage())
        print(f"seeds {first} to {number}: {seconds:.0f} s")


if __name__ == "__main__":
    main()
