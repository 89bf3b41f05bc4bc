"""Plants faults into copies of the tree, one at a time, and tells which tests find them.

    python -m tests.faults [NAME ...] [--keep-going] [--jobs N] [-- pytest arguments]

It begins with a run without a fault, which must pass: nothing could be said otherwise, and it compiles what all others
share. Then there is a line for each fault as soon as its run has ended. The exit status is 1 if any was not found, and
2 where nothing could be said. `-- -n0 tests/cells` runs some tests only. Kernels are kept where they always are, by
what they are made of: a faulty one is compiled once, and never taken for the healthy one.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.checkout import ROOT
from tests.faults.fault import Fault
from tests.faults.planted import FAULTS
from tests.faults.runner import NotHealthy, Outcome, search

COLUMNS = ("fault", "found", "by", "s")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    own, pytest_arguments = list(arguments), []
    if "--" in own:
        at = own.index("--")
        own, pytest_arguments = own[:at], own[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        usage="%(prog)s [NAME ...] [options] [-- pytest arguments]",
        description="Plants faults into copies of the tree, one at a time, and tells which tests find them.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a fault; all if none is given")
    parser.add_argument("--list", action="store_true", help="print the faults, and run nothing")
    parser.add_argument("--keep-going", action="store_true", help="run all tests, and tell all that fail")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="faults at the same time (1)")
    parser.add_argument("--longest", type=float, default=3600.0, metavar="S", help="seconds of a run at most (3600)")
    parser.add_argument("--healthy", action="store_true", help="leave out the run without a fault")
    options = parser.parse_args(own)
    options.pytest_arguments = pytest_arguments
    unknown = sorted(set(options.names) - {fault.name for fault in FAULTS})
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    return options


def cells(outcome: Outcome) -> tuple[str, str, str, str]:
    by = [*outcome.tests, *([outcome.remark] if outcome.remark else [])]
    return outcome.fault.name, "found" if outcome.found else "NOT FOUND", "; ".join(by), f"{outcome.seconds:.1f}"


def markdown(row: Sequence[str]) -> str:
    return f"| {' | '.join(value.replace('|', chr(92) + '|') for value in row)} |"


class Report:
    """A line for each outcome; in the end a table, which for a pipe those lines are already."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def begin(self) -> None:
        if not self.console.is_terminal:
            self._print(markdown(COLUMNS), markdown(["---"] * len(COLUMNS)))

    def told(self, outcome: Outcome) -> None:
        row = cells(outcome)
        self._print("  ".join(row) if self.console.is_terminal else markdown(row))

    def end(self, outcomes: Sequence[Outcome]) -> None:
        if not self.console.is_terminal:
            return
        table = Table(*COLUMNS)
        for outcome in outcomes:
            table.add_row(*map(escape, cells(outcome)), style="" if outcome.found else "red")
        self.console.print(table)

    def _print(self, *lines: str) -> None:
        for line in lines:
            print(line, file=self.console.file, flush=True)


def listed(faults: Sequence[Fault]) -> list[str]:
    return [f"{fault.name}: {fault.why} ({fault.file})" for fault in faults]


def main(arguments: Sequence[str]) -> int:
    options = parsed(arguments)
    faults = [fault for fault in FAULTS if not options.names or fault.name in options.names]
    if options.list:
        print("\n".join(listed(faults)))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that copies and processes go
    report = Report(Console())
    report.begin()
    with tempfile.TemporaryDirectory(prefix="fastrnn-faults-") as folder:
        try:
            outcomes = search(
                ROOT,
                Path(folder),
                faults,
                options.pytest_arguments,
                keep_going=options.keep_going,
                jobs=min(options.jobs, len(faults)),
                longest=options.longest,
                is_healthy=options.healthy,
                told=report.told,
            )
        except NotHealthy as error:
            print(error, file=sys.stderr)
            return 2
    report.end(outcomes)
    return 0 if all(outcome.found for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
