"""How far `auto` lies behind the better of the engines that it chooses from."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.cost.points import Point
from benchmarks.cost.race import race
from benchmarks.timing import Timing
from fastrnn.backends import cost

AUTO = "auto"
BUDGET = 0.3
"""Seconds of a point's turns."""
BEHIND = 0.05
"""What counts as a miss."""
AGAIN = 3
"""Times the budget for what looks like a miss, once more: that it is one must be seen twice."""


@dataclass(frozen=True)
class Judged:
    """What a point's calls took."""

    point: Point
    seconds: Mapping[str, float]
    """by engine and "auto", in the middle"""
    behind: float
    """what `auto` took over what the better engine did, turn by turn and in the middle, less 1"""

    @property
    def chosen(self) -> str:
        """What `auto` took."""
        return chosen(cost.predicted(self.point.sizes))


def judge(point: Point) -> Judged:
    """Times the point's calls, those of a miss again and for longer."""
    first = judged(point, race(point, [None, *cost.ENGINES], BUDGET))
    return first if first.behind <= BEHIND else judged(point, race(point, [None, *cost.ENGINES], AGAIN * BUDGET))


def judged(point: Point, taken: Sequence[Timing]) -> Judged:
    """From the times of "auto" and of each engine, taken in the same turns."""
    auto, *engines = taken
    better = min(engines, key=lambda one: statistics.median(one.seconds))
    behind = statistics.median(a / b for a, b in zip(auto.seconds, better.seconds, strict=True)) - 1
    seconds = [statistics.median(one.seconds) for one in taken]
    return Judged(point, dict(zip((AUTO, *cost.ENGINES), seconds, strict=True)), behind)


def chosen(seconds: Mapping[str, float]) -> str:
    """The engine that `auto` takes for these times."""
    return "aten" if seconds["aten"] < seconds["numba"] else "numba"


def regret(seconds: Mapping[str, float], predicted: Mapping[str, float]) -> float:
    """What the engine that is predicted to be faster took over what the faster one did, less 1."""
    return seconds[chosen(predicted)] / min(seconds[engine] for engine in cost.ENGINES) - 1


def summary(behind: Sequence[float], what: str = "auto") -> str:
    """Worst, mean, and how many are beyond BEHIND."""
    beyond = sum(one > BEHIND for one in behind)
    return (
        f"{what}: behind the better engine by {max(behind):.1%} at worst, {statistics.fmean(behind):.2%} in the mean, "
        f"beyond {BEHIND:.0%} in {beyond} of {len(behind)}"
    )


def table(results: Sequence[Judged], limit: float = BEHIND) -> Table:
    """A row for each result that lies further behind than `limit`, the worst first."""
    shown = Table(box=SIMPLE_HEAD, title=f"behind by more than {limit:.0%}")
    shown.add_column("call", no_wrap=True)
    for heading in ("taken", *cost.ENGINES, *(f"{engine}, predicted" for engine in cost.ENGINES), "behind"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for one in sorted(results, key=lambda one: -one.behind):
        if one.behind > limit:
            predicted = cost.predicted(one.point.sizes)
            times = [cost.told(each[engine]) for each in (one.seconds, predicted) for engine in cost.ENGINES]
            shown.add_row(str(one.point), one.chosen, *times, f"{one.behind:.1%}")
    return shown
