"""What the race's records say, as plain rows: the points, the times of each racer, and what was the faster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.cases import Case, Shape
from benchmarks.means import geometric_mean

BASELINE, LOOP, AUTO = "torch.nn", "loop", "auto"
GRAPH, EAGER = "graph", "eager"
KINDS = (GRAPH, EAGER)


class Point(NamedTuple):
    """One case of the race and, by racer, what was measured or why nothing was."""

    case: Case
    times: dict[str, dict[str, Any]]

    def microseconds(self, racer: str, kind: str) -> float | None:
        """The median time of a call."""
        found = self.times.get(racer, {}).get(kind)
        return None if found is None else float(found[0])

    def speed(self, racer: str, kind: str) -> float | None:
        """How many times as fast as torch.nn."""
        ours, base = self.microseconds(racer, kind), self.microseconds(BASELINE, kind)
        return None if ours is None or base is None else base / ours

    def best(self, kind: str) -> tuple[str, float] | None:
        """The fastest of fastrnn's kernels, and its speed."""
        speeds = [(speed, racer) for racer in self.times if (speed := self.speed(racer, kind)) and racer not in OTHERS]
        return max(speeds)[::-1] if speeds else None


OTHERS = (BASELINE, AUTO)
"""Racers that are no kernels of fastrnn's own, or choose among them."""


def points(rows: Iterable[dict[str, Any]]) -> list[Point]:
    """Of a race's records, those that have times."""
    found = []
    for row in rows:
        if "times" in row:
            plain = {**row["point"], "shape": Shape(*row["point"]["shape"])}
            found.append(Point(Case(**plain), row["times"]))
    return found


def racers(found: Sequence[Point]) -> list[str]:
    """Fastrnn's, in the order in which they were raced; `auto` last."""
    names = dict.fromkeys(name for point in found for name in point.times if name != BASELINE)
    return [name for name in names if name != AUTO] + [name for name in names if name == AUTO]


def means(found: Sequence[Point], kind: str) -> dict[tuple[str, str], tuple[float, float, int]]:
    """By mode and racer, and for the best kernel of each point: geometric mean, least, and how many points."""
    speeds: dict[tuple[str, str], list[float]] = {}
    for point in found:
        for name in racers(found):
            speed = point.speed(name, kind)
            if speed is not None:
                speeds.setdefault((point.case.mode, name), []).append(speed)
        best = point.best(kind)
        if best is not None:
            speeds.setdefault((point.case.mode, "the best kernel"), []).append(best[1])
    return {key: (geometric_mean(values), min(values), len(values)) for key, values in speeds.items()}


def losses(found: Sequence[Point], share: float = 0.97) -> list[str]:
    """Where `auto` has less than `share` of the speed of the fastest racer, torch.nn included.

    They are rows that `preference_cuda.py` lacks, as they would begin there, with the speeds beside.
    """
    lines = []
    for point in found:
        for kind in KINDS:
            ours = point.speed(AUTO, kind)
            speeds = {name: speed for name in point.times if name != AUTO and (speed := point.speed(name, kind))}
            if ours is None or not speeds:
                continue
            first = max(speeds, key=lambda name: speeds[name])
            if ours < share * speeds[first]:
                case, (T, B, _, H) = point.case, point.case.shape
                row = f'("{case.cell}",), ("{case.dtype}",), units={H}, batch={B}, steps={T}, training={case.training}'
                lines.append(f"{row}  # {kind}: {first} {speeds[first]:.2f}, auto {ours:.2f}")
    return lines
