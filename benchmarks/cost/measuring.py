"""Times of both engines, in turns, appended to a file line by line, so that a run can be stopped and taken up again."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import environment
from benchmarks.command_line import UsageError
from benchmarks.cost.points import Point
from benchmarks.cost.race import ENGINES, race
from benchmarks.timing import Timing

BUDGET = 0.1
"""Seconds of a point's turns, five of each engine at least; before them each warms up for as long."""
SAME = ("cpu", "cpu_capability", "packages")
"""What must not change within a file, of what `environment.describe` tells; of the packages not this one."""


class Timed(NamedTuple):
    """A point and what a call of it took."""

    point: Point
    seconds: dict[str, float]
    """by engine"""


def measure(points: Iterable[Point], path: Path, minutes: float, tell: Callable[[int, Point], None]) -> None:
    """Appends the times of `points` to the file, but for those that it has, for so long at most.

    `tell` is called with each point before it is timed, and how many the file has.

    Raises:
        UsageError: the file was begun on another machine or with other versions, or is none of this kind.
    """
    end = time.monotonic() + 60 * minutes
    where = environment.describe()
    known: set[Point] = set()
    has_any = path.exists() and path.stat().st_size > 0
    if has_any:
        before, timed = read(path)
        if _fixed(before) != _fixed(where):
            raise UsageError(f"{path} is of {_fixed(before)}, this is {_fixed(where)}")
        known = {one.point for one in timed}
    gc.freeze()  # what is there stays: collecting garbage before each race then takes no time
    with path.open("a") as file:
        file.write("\n" if has_any else json.dumps(where) + "\n")  # the last line may have been cut off
        for point in points:
            if time.monotonic() >= end:
                return
            if point not in known:
                tell(len(known), point)
                taken = race(point, ENGINES, BUDGET)
                seconds = {name: _likely(one) for name, one in zip(ENGINES, taken, strict=True)}
                _write(file, point._asdict() | {"seconds": seconds})
                known.add(point)


def read(path: Path) -> tuple[dict[str, Any], list[Timed]]:
    """Where a file was measured, and what. A last line that was cut off is passed over. Raises UsageError."""
    where, timed = None, []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if where is None:
            where = record
        else:
            seconds = record.pop("seconds")
            timed.append(Timed(Point(**record), seconds))
    if where is None or "cpu" not in where:
        raise UsageError(f"{path} has no times of python -m benchmarks.cost measure")
    return where, timed


def _likely(taken: Timing) -> float:
    """What a call takes that neighbours leave alone: that of the quickest turn."""
    return min(taken.seconds)


def _fixed(where: dict[str, Any]) -> dict[str, Any]:
    kept = {name: where.get(name) for name in SAME}
    kept["packages"] = {name: version for name, version in (where.get("packages") or {}).items() if name != "fastrnn"}
    return kept


def _write(file: Any, record: dict[str, Any]) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()
