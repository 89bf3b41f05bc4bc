"""`python -m benchmarks.scaling`: how the time of fastrnn's calls grows with the work, and falls with threads.

Each case is timed as it is, over twice the steps, with twice the batch, and on one thread, in turns.

The exit status is 0 if everything was measured, 2 if the command line was wrong, 130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import command_line, environment, report, timing
from benchmarks.cases import DEFAULT_CELLS, DEFAULT_MODES, Case, make_problem
from benchmarks.command_line import INTERRUPTED, OK, USAGE_ERROR, UsageError, positive_float
from benchmarks.contenders import FastRNN, Run
from benchmarks.timing import Summary

FORMAT = 1
"""Of the JSON."""
SHAPES = ("100x1x64", "100x16x128", "100x32x256", "100x128x64", "50x64x512")
RATIOS = TWICE_STEPS, TWICE_BATCH, THREADS = "twice the steps", "twice the batch", "threads"
CAPTION = (
    "time ± half the interquartile range; twice the steps or the batch: that time / the case's;\n"
    "threads: the time on one thread / the case's, on as many as the title says"
)


@dataclass(frozen=True)
class Result:
    """One case's time and how it changes."""

    case: Case
    seconds: Summary
    ratios: dict[str, Summary]


def measure_case(case: Case, backend: str, budget: float) -> Result:
    """Raises NotServed where the backend does not serve the case."""
    with case.grad_mode():
        run = build(case, backend)
        functions = [
            run,
            build(replace(case, shape=case.shape._replace(T=2 * case.shape.T)), backend),
            build(replace(case, shape=case.shape._replace(B=2 * case.shape.B)), backend),
            OnOneThread(build(case, backend)),
        ]
        once, steps, batch, alone = timing.interleave(functions, budget)
    ratios = {name: timing.ratio(other, once) for name, other in zip(RATIOS, (steps, batch, alone), strict=True)}
    return Result(case, timing.summarize(once.seconds), ratios)


def build(case: Case, backend: str) -> Run:
    return FastRNN(backend).build(make_problem(case))


class OnOneThread:
    """A run on one thread, which is chosen for each turn and not for each call."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self) -> object:
        with one_thread():
            return self._run()

    def turn(self, untimed: int, timed: int) -> tuple[float, float]:
        """As `timing.TimesItself`."""
        with one_thread():
            return timing.wall_burst(self._run, untimed), timing.wall_burst(self._run, timed)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        cases = command_line.cases(options)
        command_line.check_output("--json", options.json)
    except (UsageError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    where = environment.describe()
    results: list[Result] = []
    status = OK
    try:
        for case in track(cases, "", console=Console(stderr=True), transient=True):
            results += [measure_case(case, options.backend, options.budget)]
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    show(results, where)
    if options.json is not None:
        report.write_json(options.json, to_json(results, where))
    return status


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description="Times fastrnn over twice the steps, with twice the batch, and on one thread. "
        "Lists take spaces or commas.",
    )
    command_line.add_cases(parser, DEFAULT_CELLS, DEFAULT_MODES, SHAPES)
    add = parser.add_argument
    add("--backend", default="auto", metavar="NAME", help="fastrnn's backend; default: auto")
    add("--budget", type=positive_float, default=2.0, metavar="SECONDS", help="for the times of each case")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


def show(results: Sequence[Result], where: dict[str, Any]) -> None:
    console = command_line.console_for_tables()
    console.print(report.machine_text(where), highlight=False)
    console.print(table(results, where["threads"]))


def table(results: Sequence[Result], threads: int) -> Table:
    """A row for each case."""
    shown = Table(box=SIMPLE_HEAD, title=f"time of a call, {threads} threads", caption=CAPTION)
    for heading in ("cell", "mode", "T x B x I x H"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("time", *RATIOS):
        shown.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        figures = [report.ratio_text(ratio.median) for ratio in result.ratios.values()]
        shape = str(result.case.shape)
        shown.add_row(result.case.cell, result.case.mode, shape, report.time_text(result.seconds), *figures)
    return shown


def to_json(results: Sequence[Result], where: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, as JSON's types; times in seconds."""
    return {"format": FORMAT, "environment": where, "results": [*map(result_json, results)]}


def result_json(result: Result) -> dict[str, Any]:
    return {
        "cell": result.case.cell,
        "mode": result.case.mode,
        "shape": result.case.shape._asdict(),
        "seconds": result.seconds._asdict(),
        **{name: ratio._asdict() for name, ratio in result.ratios.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
