"""`python -m benchmarks.competitor`: how long calls take while another program keeps every core busy.

As many processes as there are cores compute without end, but for the quiet parts of each round, in which they are
stopped. Every call is timed by itself: threads that wait for each other can lose whole time slices of the scheduler
where one of them is not running, which no median shows, but the longest call. What even a call without other threads
loses is shown beside it, by a loop that uses as much processor time as a quiet call of fastrnn's takes: a call of much
less than a slice is many times as long wherever it is interrupted.

The exit status is 0 if contended calls of fastrnn took up to 3 times their quiet median in the mean, which counts the
longest ones, too; 1 if they took more, a result was wrong or a backend cannot serve a case, 2 if the command line was
wrong, 130 if the measurement was interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import command_line, environment, parity, report, timing
from benchmarks.busy import CompetitorEnded, Competitors
from benchmarks.cases import Case, make_problem
from benchmarks.command_line import (
    FAILURE,
    INTERRUPTED,
    OK,
    USAGE_ERROR,
    UsageError,
    known_backends,
    listed,
    positive_float,
    positive_int,
)
from benchmarks.contenders import Contender, FastRNN, NotServed, Run, TorchNN
from benchmarks.report import time_text

FORMAT = 2
"""Of the JSON."""
LIMIT = 3.0
"""Times the quiet median that contended calls may take in the mean: a thread that is alone with one competitor has half
of a processor."""
SHAPES = ("100x1x512", "100x32x256", "1x1x512", "10x1x256", "1x1x256")
"""One sequence, whose steps a team of threads shares; a batch that is split among threads; a step, ten and one smaller,
that two threads share."""
LONE = "a lone thread"
ROUNDS = 10
SECONDS = 0.5
"""Of a contender's quiet and contended calls in a round, each."""
CAPTION = (
    "quiet, contended: median ± half the interquartile range; ratio: the mean of contended calls / the quiet median;\n"
    f"slow: contended calls of more than {LIMIT:g} quiet medians"
)


@dataclass
class Result:
    """One contender's calls of one case, in seconds, in the order in which they were made."""

    case: Case
    contender: str
    is_ours: bool = False
    quiet: list[float] = field(default_factory=list)
    contended: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The mean of contended calls over the quiet median."""
        return fmean(self.contended) / median(self.quiet)

    @property
    def slow_calls(self) -> int:
        """Contended calls beyond the limit."""
        allowed = LIMIT * median(self.quiet)
        return sum(seconds > allowed for seconds in self.contended)

    @property
    def fails(self) -> bool:
        """Whether fastrnn misses the target."""
        return self.is_ours and self.ratio > LIMIT


def measure_case(
    case: Case, contenders: Sequence[Contender], competitors: Competitors, rounds: int, seconds: float
) -> list[Result]:
    """Calls of `contenders`, and of a lone thread as long as the last one's, in turns, quiet and contended.

    Raises Mismatch or NotServed before anything is timed.
    """
    results = [Result(case, contender.name, isinstance(contender, FastRNN)) for contender in contenders]
    with case.grad_mode():
        problem = make_problem(case)
        standard = parity.standard(problem)
        runs = [contender.build(problem) for contender in contenders]
        for contender, run in zip(contenders, runs, strict=True):
            parity.check_run(contender, run(), standard)
            last = time_calls(run, timing.WARM_UP_SECONDS)
        results.append(Result(case, LONE))
        runs.append(lone_thread(median(last)))
        with timing.no_garbage_collection():
            for _ in range(rounds):
                for result, run in zip(results, runs, strict=True):
                    result.quiet += time_calls(run, seconds)
                with competitors.busy():
                    for result, run in zip(results, runs, strict=True):
                        result.contended += time_calls(run, seconds)
    return results


def lone_thread(seconds: float) -> Run:
    """A run that needs so much of a processor's time and nothing else."""

    def run() -> tuple[()]:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return ()

    return run


def time_calls(run: Run, seconds: float) -> list[float]:
    """The seconds of each call, of as many as are begun within `seconds`, at least one."""
    times = []
    now = time.perf_counter()
    end = now + seconds
    while now < end:
        began = now
        run()
        now = time.perf_counter()
        times.append(now - began)
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        cases = command_line.cases(options)
        contenders: list[Contender] = [TorchNN(), *(FastRNN(name) for name in known_backends(listed(options.backends)))]
        command_line.check_output("--json", options.json)
    except (UsageError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    where = environment.describe()
    results: list[Result] = []
    status = OK
    try:
        with Competitors(environment.available_cores()) as competitors:
            for case in track(cases, "", console=Console(stderr=True), transient=True):
                results += measure_case(case, contenders, competitors, options.rounds, options.seconds)
    except (parity.Mismatch, NotServed, CompetitorEnded) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        status = FAILURE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    show(results, where)
    if options.json is not None:
        report.write_json(options.json, to_json(results, where))
    return status or (FAILURE if any(result.fails for result in results) else OK)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.competitor",
        description="Times fastrnn and torch.nn with and without another program that keeps every core busy. "
        "Lists take spaces or commas.",
    )
    command_line.add_cases(parser, ["lstm"], ["inference"], SHAPES)
    add = parser.add_argument
    add("--backends", nargs="+", default=["numba"], metavar="NAME", help="fastrnn's backends; default: numba")
    add("--rounds", type=positive_int, default=ROUNDS, metavar="N")
    add("--seconds", type=positive_float, default=SECONDS, help="of a contender's quiet, and contended, calls a round")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


def show(results: Sequence[Result], where: dict[str, Any]) -> None:
    console = command_line.console_for_tables()
    console.print(f"{report.machine_text(where)}; as many competitors as cores: {where['cores']}", highlight=False)
    console.print(table(results))


def table(results: Sequence[Result]) -> Table:
    """A row for each case and contender."""
    shown = Table(box=SIMPLE_HEAD, title="time of a call, quiet and contended", caption=CAPTION)
    for heading in ("cell", "mode", "T x B x I x H", "contender"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("quiet", "longest", "contended", "longest", "ratio", "calls", "slow"):
        shown.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for result in results:
        if previous not in (None, result.case):
            shown.add_section()
        previous = result.case
        figures = (
            time_text(timing.summarize(result.quiet)),
            longest_text(result.quiet),
            time_text(timing.summarize(result.contended)),
            longest_text(result.contended),
            f"[red]{result.ratio:.1f}[/]" if result.fails else f"{result.ratio:.1f}",
            str(len(result.contended)),
            str(result.slow_calls),
        )
        shown.add_row(result.case.cell, result.case.mode, str(result.case.shape), result.contender, *figures)
    return shown


def longest_text(seconds: Sequence[float]) -> str:
    return f"{max(seconds) * 1e3:.2f} ms"


def to_json(results: Sequence[Result], where: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, as JSON's types; times in seconds."""
    return {"format": FORMAT, "environment": where, "limit": LIMIT, "results": [*map(result_json, results)]}


def result_json(result: Result) -> dict[str, Any]:
    return {
        "cell": result.case.cell,
        "mode": result.case.mode,
        "shape": result.case.shape._asdict(),
        "contender": result.contender,
        "quiet": sample_json(result.quiet),
        "contended": sample_json(result.contended),
        "ratio": result.ratio,
        "slow_calls": result.slow_calls,
        "fails": result.fails,
    }


def sample_json(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "calls": len(seconds),
        **timing.summarize(seconds)._asdict(),
        "mean": fmean(seconds),
        "maximum": max(seconds),
    }


if __name__ == "__main__":
    sys.exit(main())
