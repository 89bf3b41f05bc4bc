"""The table of `fastrnn.backends.cost` from measured times.

Coefficients, none below 0, are sought with which the sums of terms are as close to the times as can be, by ratio. Most
weight is on how the times of the two engines compare, which is what the table is for and what a busy machine spoils
least, and on points where they are close. A dtype of which there are few points leans on what was found for float32, at
a pace of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks.command_line import UsageError
from benchmarks.cost.measuring import Timed
from benchmarks.cost.points import CELL_NAMES, Point
from fastrnn.backends import cost

Array = NDArray[np.float64]
Table = Mapping[str, Sequence[float]]

LEAST = 8
"""Points of a row of float32, without which there is no table."""
ROUNDS = 15
COMPARED = 0.75
"""The part of an engine's error that the other's may make up for."""
CLOSE, FAR = 0.5, 0.15
"""The logarithm of the ratio of times at which a point has half the weight of a tie; the least weight there is."""
LEAN = 0.1
"""A coefficient that is twice float32's weighs like one point that is missed by this."""
NO_GAIN = 1e-9
"""Of a column, for each point: it stays out."""


class Row:
    """What is known of one way, cell and dtype: the points at which it was timed."""

    def __init__(self, numbers: Sequence[int], counts: Sequence[Sequence[float]]) -> None:
        self.numbers = np.array(numbers)
        """of the points, (n,)"""
        self.counts = np.array(counts)
        """how often each term comes, (n, terms)"""


def fitted(timed: Sequence[Timed]) -> dict[str, list[float]]:
    """A row for every way, cell and dtype, by their names.

    Raises:
        UsageError: there are too few points.
    """
    rows = grouped(timed)
    for name in names():
        count = len(rows[name].numbers) if name in rows else 0
        if _in_float32(name) == name and count < LEAST:
            raise UsageError(f"{count} points of {name!r}, {LEAST} are needed: measure for longer")
    taken = np.log([[seconds[engine] for engine in cost.ENGINES] for _, seconds in timed])
    weights = FAR + (1 - FAR) / (1 + ((taken[:, 0] - taken[:, 1]) / CLOSE) ** 2)
    errors = np.zeros_like(taken)  # log of predicted / taken, (points, engines)
    found: dict[str, Array] = {}
    for _ in range(ROUNDS):
        for name in names():
            like = found[_in_float32(name)] if _in_float32(name) != name else None
            if name not in rows:
                assert like is not None
                found[name] = like
                continue
            row, engine = rows[name], cost.ENGINES.index(name.split()[0])
            wanted = taken[row.numbers, engine] + COMPARED * errors[row.numbers, 1 - engine]
            found[name] = closer(row.counts, wanted, weights[row.numbers], found.get(name), like)
            errors[row.numbers, engine] = _logarithm(row.counts @ found[name]) - taken[row.numbers, engine]
    return {name: row.tolist() for name, row in found.items()}


def names() -> Iterator[str]:
    """Of all rows, float32's first."""
    points: list[Point] = []
    for dtype in sorted(cost.DTYPES.values(), key=lambda dtype: dtype != "float32"):
        for cell, training, steps in product(CELL_NAMES, (False, True), (1, 100)):
            points.append(Point(cell, training, steps, 1, 64, 64, 1, dtype))
            points.append(Point(cell, training, 1, 1, 64, 64, 1, dtype, is_cell=True))
        points += [Point("lstm", training, 100, 1, 64, 64, 1, dtype, P=32) for training in (False, True)]
    yield from dict.fromkeys(name for point in points for name in cost.rows(point.sizes))


def grouped(timed: Sequence[Timed]) -> dict[str, Row]:
    """The points of each row."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, (point, _) in enumerate(timed):
        for name in cost.rows(point.sizes):
            groups[name].append(number)
    counts = [cost.terms(point.sizes) for point, _ in timed]
    return {name: Row(numbers, [counts[number] for number in numbers]) for name, numbers in groups.items()}


def _in_float32(name: str) -> str:
    return f"{name.rsplit(' ', 1)[0]} float32"


def closer(counts: Array, wanted: Array, weights: Array, before: Array | None, like: Array | None) -> Array:
    """Coefficients with which counts @ coefficients has logarithms closer to those that are wanted -> (terms,).

    Half a step of Newton's method; without a row from before it, those that are best for the ratios themselves.

    Args:
        counts: (points, terms).
        wanted: (points,).
        weights: (points,).
        before: (terms,).
        like: (terms,), another row, which has the terms that may come, and how they compare where no point tells.
    """
    prior = np.zeros((0, counts.shape[1]))
    if like is not None:
        like = like * np.exp(np.median(wanted - _logarithm(counts @ like)))
        there = like > 0
        prior = np.diag(np.divide(LEAN, like, out=np.zeros_like(like), where=there))[there]
        counts = counts * there
    now = np.exp(wanted) if before is None else np.exp(_logarithm(counts @ before))
    scale = np.sqrt(weights)
    matrix = np.vstack([counts * (scale / now)[:, None], prior])
    aim = np.concatenate([(1 + wanted - np.log(now)) * scale, np.full(len(prior), LEAN)])
    best = non_negative(matrix, aim)
    return best if before is None else (before + best) / 2


def _logarithm(seconds: Array) -> Array:
    """Of what may be 0, where no term was found that comes."""
    return np.log(np.maximum(seconds, 1e-7))


def non_negative(matrix: Array, target: Array) -> Array:
    """The x >= 0 of least squares of matrix (n, m) x - target (n,), as Lawson and Hanson find it -> (m,).

    Columns enter one after the other, the one that helps most first; what then falls below 0 leaves.
    """
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1
    matrix = matrix / scale
    gram, aim = matrix.T @ matrix, matrix.T @ target
    found, inside = np.zeros(len(scale)), np.zeros(len(scale), dtype=bool)
    for _ in range(4 * len(scale)):
        gain = np.where(inside, 0.0, aim - gram @ found)
        if gain.max() <= NO_GAIN * len(target):
            break
        inside[gain.argmax()] = True
        while True:
            best = np.zeros(len(scale))
            best[inside] = np.linalg.lstsq(gram[np.ix_(inside, inside)], aim[inside], rcond=None)[0]
            below = inside & (best <= 0)
            if not below.any():
                break
            share = np.min(found[below] / (found[below] - best[below] + np.finfo(float).tiny))
            found = found + share * (best - found)
            inside &= found > np.finfo(float).eps
        found = best
    return found / scale


def residuals(timed: Sequence[Timed], table: Table) -> dict[str, tuple[int, float, float]]:
    """Of each row: how many points, the root of the mean square of log(predicted / taken), and the largest."""
    found = {}
    for name, row in sorted(grouped(timed).items()):
        engine = name.split()[0]
        taken = [timed[number].seconds[engine] for number in row.numbers]
        errors = _logarithm(row.counts @ np.array(table[name])) - np.log(taken)
        found[name] = len(errors), float(np.sqrt(np.mean(errors**2))), float(np.max(np.abs(errors)))
    return found
