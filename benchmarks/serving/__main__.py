"""`python -m benchmarks.serving`: one step and short chunks with carried states, against those who serve them.

`fastrnn.stream` with each kind of weights, fastrnn's module, torch.nn, ONNX Runtime and OpenVINO, each in a process of
its own, call layers that go on where the last call stopped: in a row, or every 10 ms, which finds caches cold; while
nothing else runs, or beside a program that keeps every core busy. Everybody's values are compared with torch.nn in
float64 before anything is timed. Then some of many streams are stepped, other ones in every call: by slots, by a stream
for each, and by gathering and scattering states.

The exit status is 0 if everything was measured, 1 if a contender failed or its values were wrong, 2 if the command line
was, 130 if the measurement was interrupted; what was measured until then is reported.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks import environment
from benchmarks.busy import CompetitorEnded, Competitors
from benchmarks.command_line import (
    FAILURE,
    INTERRUPTED,
    OK,
    USAGE_ERROR,
    UsageError,
    check_output,
    console_for_tables,
)
from benchmarks.serving import files, report
from benchmarks.serving.contenders import NAME, PEERS, missing
from benchmarks.serving.measure import Processes, Row, measure
from benchmarks.serving.options import Job, build_parser, jobs_of
from fastrnn import extension

PACKAGES = ("onnxruntime", "openvino")
NO_DOOR = "why_no_door"
"""In the environment: why streams are called by Python's own door, which takes longer than the one in C."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    failures: list[str] = []
    status = OK
    try:
        check_plot(options)
        if options.read is not None:
            rows, failures, where = files.read(options.read)
        else:
            jobs = jobs_of(options)
    except (UsageError, ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    if options.read is None:
        where = environment.describe(peers=PACKAGES) | {NO_DOOR: extension.why_no_door()}
        for option in PEERS if options.contenders is None else ():
            if missing(option):
                print(f'without {option}; pip install "fastrnn[peers]"', file=sys.stderr)
        status = measure_all(jobs, rows, failures)
    show(rows, failures, where)
    if options.json is not None:
        files.write(options.json, rows, failures, where)
    if options.plot is not None:
        from benchmarks.serving.plot import write_plot

        write_plot(options.plot, rows, where)
    return status or (FAILURE if failures else OK)


def check_plot(options: argparse.Namespace) -> None:
    """Raises UsageError, before minutes go by, where no picture could be written."""
    check_output("--plot", options.plot)
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError('--plot: needs matplotlib; pip install "fastrnn[bench]"')


def measure_all(jobs: Sequence[Job], rows: list[Row], failures: list[str]) -> int:
    """Appends rows and failures as they come; returns the exit status."""
    try:
        is_any_busy = any(condition.busy for job in jobs for condition in job.conditions)
        count = environment.available_cores() if is_any_busy else 0
        with Processes() as processes, Competitors(count) as competitors:
            for point, entries, conditions, budget in track(jobs, "", console=Console(stderr=True), transient=True):
                found, wrong = measure(point, entries, conditions, processes, competitors, budget)
                rows += found
                failures += wrong
    except CompetitorEnded as error:
        failures.append(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return OK


def show(rows: Sequence[Row], failures: Sequence[str], where: dict[str, Any]) -> None:
    console = console_for_tables()
    console.print(report.machine_text(where), highlight=False)
    if where.get(NO_DOOR) is not None:
        console.print(f"streams are called from Python, not from C: {where[NO_DOOR]}", style="yellow", highlight=False)
    single, slots = ([row for row in rows if bool(row.point.slots) == pooled] for pooled in (False, True))
    if single:
        console.print(report.table(single))
        if any(row.contender == NAME for row in single):
            console.print(report.ratios_table(single))
    if slots:
        console.print(report.throughput_table(slots))
    for failure in failures:
        console.print(failure, style="red", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
