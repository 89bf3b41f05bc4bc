"""The command line, and what it asks to be measured."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.cases import MODULES
from benchmarks.command_line import UsageError, check_output, known, listed, positive_float, positive_int
from benchmarks.peers.contender import can_stop
from benchmarks.serving.contenders import LATENCY, OPTIONS, SLOTS, Contender, missing
from benchmarks.serving.measure import CONDITIONS, ROW, Condition, Entry
from benchmarks.serving.points import Point
from benchmarks.serving.task import INT8, WEIGHTS

SIZES = (64, 96, 128, 256, 512)
FEW_SIZES = (64, 256)
INT8_SIZE = 1024
"""Measured in int8 alone: wider weights are read from the third-level cache or beyond, by everyone alike."""
CHUNKS = ("8x1", "16x1", "100x4")
"""Steps and streams of a call, beside one step of one stream."""
SLOTS_OF = 1000
AT_A_TIME, QUICK_AT_A_TIME = (1, 4, 16, 64), (64,)
"""Of SLOTS_OF streams, how many a call steps."""
THREADS = (1, 2)
TEAM_FROM = 128
"""Units from which a step of an LSTM is measured on two threads by default."""
BUDGET, QUICK_BUDGET = 12.0, 5.0
"""Seconds for the times of a point: the default run takes eight to ten minutes."""
SLOTS_SHARE = 0.15
"""Of that for a point with slots: its calls come in a row alone."""


class Job(NamedTuple):
    """A point, who is measured there and how, and for so many seconds."""

    point: Point
    entries: list[Entry]
    conditions: list[Condition]
    budget: float


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description="Measures calls of one step or a few with carried states: fastrnn.stream against torch.nn, ONNX "
        "Runtime and OpenVINO. Lists take spaces or commas. Without --cells, --sizes, --layers and --chunks a choice "
        "of points is measured, some of many streams among them, else every combination of what is given.",
    )
    add = parser.add_argument
    add("--cells", nargs="+", metavar="CELL", help=f"of {', '.join(MODULES)}")
    add("--sizes", nargs="+", metavar="H", help="units, and inputs")
    add("--layers", nargs="+", metavar="N")
    add("--chunks", nargs="+", metavar="TxB", help=f"steps and streams of a call, as {', '.join(CHUNKS)}")
    add("--contenders", nargs="+", metavar="NAME", help=f"of {', '.join(OPTIONS)}; default: those that are here")
    add("--weights", nargs="+", metavar="KIND", help=f"of {', '.join(WEIGHTS)}; default: all, beyond 512 units int8")
    add(
        "--threads",
        nargs="+",
        metavar="N",
        help=f"default: 1, and for a step of an LSTM of {TEAM_FROM} units and more 2",
    )
    names = ", ".join(one.option for one in CONDITIONS)
    add("--conditions", nargs="+", default=[one.option for one in CONDITIONS], metavar="NAME", help=f"of {names}")
    add("--at-a-time", nargs="*", metavar="N", help=f"of {SLOTS_OF} streams, how many a call steps; none to leave out")
    add("--budget", type=positive_float, metavar="SECONDS", help=f"for the times of a point; default: {BUDGET:g}")
    add("--quick", action="store_true", help="a minute: LSTMs of 64 and 256 units, one thread")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--plot", type=Path, metavar="FILE", help="write pictures as PNG; needs matplotlib")
    add("--read", type=Path, metavar="FILE", help="measure nothing: show what --json wrote")
    return parser


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """What the options ask for. Raises UsageError."""
    if not can_stop():
        raise UsageError("this system cannot stop a process between its turns")
    check_output("--json", options.json)
    chosen = contenders(options)
    weights = known("kind of weights", listed(options.weights), WEIGHTS) if options.weights else None
    threads = numbers("--threads", options.threads) if options.threads else [1] if options.quick else None
    names = known("condition", listed(options.conditions), [one.option for one in CONDITIONS])
    conditions = [one for one in CONDITIONS if one.option in names]
    budget = options.budget or (QUICK_BUDGET if options.quick else BUDGET)
    jobs = [
        Job(point, entries(point, LATENCY, chosen, weights, threads), conditions, budget) for point in points(options)
    ]
    jobs += [
        Job(point, entries(point, SLOTS, chosen, weights, threads or [1]), [ROW], SLOTS_SHARE * budget)
        for point in slot_points(options)
    ]
    jobs = [job for job in jobs if job.entries]
    if not jobs:
        raise UsageError("none of the contenders serves any of that")
    return jobs


def contenders(options: argparse.Namespace) -> list[str]:
    """The options of those that are named, or installed. Raises UsageError."""
    if options.contenders is None:
        return [option for option in OPTIONS if not missing(option)]
    chosen = known("contender", listed(options.contenders), OPTIONS)
    absent = [package for option in chosen for package in missing(option)]
    if absent:
        raise UsageError(f'--contenders: needs {", ".join(absent)}; pip install "fastrnn[peers]"')
    return chosen


def points(options: argparse.Namespace) -> list[Point]:
    """The choice of points, or all combinations of what is given."""
    if not are_given(options):
        return [Point("lstm", H) for H in FEW_SIZES] if options.quick else default_points()
    cells = known("cell", listed(options.cells or ["lstm"]), MODULES)
    sizes = numbers("--sizes", options.sizes or [str(H) for H in SIZES])
    layers = numbers("--layers", options.layers or ["1"])
    chunks = [chunk(text) for text in listed(options.chunks or ["1x1"])]
    return [Point(cell, H, T, B, n) for cell in cells for n in layers for T, B in chunks for H in sizes]


def are_given(options: argparse.Namespace) -> bool:
    """Whether the points are."""
    return any((options.cells, options.sizes, options.layers, options.chunks))


def default_points() -> list[Point]:
    return [
        *(Point("lstm", H) for H in (*SIZES, INT8_SIZE)),
        *(Point(cell, H) for cell in ("gru", "rnn_tanh") for H in FEW_SIZES),
        *(Point("lstm", H, layers=2) for H in FEW_SIZES),
        *(Point("lstm", H, *chunk(text)) for text in CHUNKS for H in FEW_SIZES),
    ]


def slot_points(options: argparse.Namespace) -> list[Point]:
    """LSTMs whose calls step some of many streams, unless other points are given alone."""
    if options.at_a_time is None:
        at_a_time = [] if are_given(options) else [*(QUICK_AT_A_TIME if options.quick else AT_A_TIME)]
    else:
        at_a_time = numbers("--at-a-time", options.at_a_time)
    if max(at_a_time, default=0) > SLOTS_OF:
        raise UsageError(f"--at-a-time: there are {SLOTS_OF} streams")
    sizes = FEW_SIZES[:1] if options.quick else FEW_SIZES
    return [Point("lstm", H, 1, B, 1, SLOTS_OF) for H in sizes for B in at_a_time]


def entries(
    point: Point,
    table: Sequence[Contender],
    chosen: Sequence[str],
    weights: Sequence[str] | None,
    threads: Sequence[int] | None,
) -> list[Entry]:
    """Those of `table` that are chosen and serve the point, float32 first."""
    kinds = weights or ((INT8,) if max(SIZES) < point.H else WEIGHTS)
    is_for_teams = point == Point("lstm", point.H) and point.H >= TEAM_FROM
    numbers_of_threads = threads or (THREADS if is_for_teams else THREADS[:1])
    return [
        Entry(contender, kind, number)
        for kind in kinds
        for contender in table
        if contender.option in chosen and point.cell in contender.cells.get(kind, ())
        for number in numbers_of_threads
    ]


def numbers(option: str, texts: Sequence[str]) -> list[int]:
    """Raises UsageError for what is none."""
    try:
        return [positive_int(text) for text in listed(texts)]
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UsageError(f"{option}: {error}") from None


def chunk(text: str) -> tuple[int, int]:
    """Steps and streams. Raises UsageError."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or "0" in found.groups():
        raise UsageError(f"--chunks: expected TxB, as 8x1, got {text!r}")
    return int(found[1]), int(found[2])
