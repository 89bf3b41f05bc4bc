"""`python -m benchmarks.activations`: how far the CPU kernels' float32 sigmoid and tanh are from the truth, everywhere.

Every finite float32 is an argument, or with --stride every N-th. Errors are told in ulp: the distance between the
float32 numbers around the true value, where that is denormal 2^-149. Correct rounding errs by at most half of one.

The truth is NumPy's, in float64: its exp and tanh err by less than 4 ulp of float64, the sum and the division around
exp by half a one each, and an ulp of float32 is 2^29 of those, so that what is told is right to 2 10^-8.

Two things are measured otherwise:
- sigmoid(x) for x < -87, where the kernel returns sigmoid(-87), 1.4 times the smallest normal number, and the truth
  goes on to zero through the denormal ones: by the absolute error, in smallest normal numbers (2^-126).
- 1 - tanh², the derivative, as backward computes it from the kernel's tanh: near saturation an ulp of tanh is many of
  the small derivative. It is a factor of gradients that derivatives of up to 1 scale beside it, so that its absolute
  error counts, in ulp of 1 (2^-23); where tanh nears 1, rounding it correctly costs half of one.

The exit status is 0 if no error is above 4 of its units, 1 if one is (or is not a number), 130 if the sweep was
interrupted.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.command_line import FAILURE, INTERRUPTED, OK, console_for_tables, positive_int

LIMIT = 4.0
"""Of every error, in its unit."""
CHUNK = 2**16
"""Arguments at a time: their float64 arrays stay in the second-level cache."""
FIRST_INFINITE = 0x7F80_0000
"""The bits of infinity: below it are those of all finite numbers that are not negative, in order."""
SIGN = 0x8000_0000
SIGMOID_BOUND = 87.0
"""Beyond it the kernel's sigmoid of a negative number stands still."""
EDGES = (0.0, 2.0**-12, 1.0, 10.0, SIGMOID_BOUND, math.inf)
"""Magnitudes between which figures are told apart: up to the first tanh x is x to within rounding, from 10 on it is 1.
The upper one of two belongs to them."""
SMALLEST_NORMAL = 2.0**-126
ULP_OF_ONE = 2.0**-23
SMALLEST = 2.0**-149
EXPONENT = 0x7FF0_0000_0000_0000
"""The bits of a float64's exponent: by themselves they are the power of two at or below its magnitude."""
PLAIN_WIDTH = 120
"""Columns of the table in a file or a pipe."""

Single = NDArray[np.float32]
Double = NDArray[np.float64]
Key = TypeVar("Key")


class Range(NamedTuple):
    """Finite numbers of one sign, by the bits of their magnitudes."""

    negative: bool
    first: int
    end: int
    """the first bits beyond"""
    edges: tuple[float, float]
    """of `EDGES`, between which they lie"""


class Measure(NamedTuple):
    """One kind of error of one function."""

    function: str
    what: str
    unit: str
    error: Callable[[Single, Double], Double]
    """of a result, given the truth; in units"""
    applies: Callable[[Range], bool] = lambda numbers: True


class Figures(NamedTuple):
    """Of the errors at some arguments."""

    arguments: int
    total: float
    largest: float
    where: float
    """the argument with the largest error"""

    @property
    def mean(self) -> float:
        return self.total / self.arguments

    @property
    def passes(self) -> bool:
        return self.largest <= LIMIT

    def join(self, other: Figures) -> Figures:
        """Of both; an error that is not a number is the largest."""
        worse = self if math.isnan(self.largest) or self.largest >= other.largest else other
        return Figures(self.arguments + other.arguments, self.total + other.total, worse.largest, worse.where)


Sweep = dict[tuple[Measure, tuple[float, float]], Figures]
"""The figures of a measure between two of `EDGES`, both signs together."""


def in_ulp(result: Single, truth: Double) -> Double:
    """The error in ulp of float32 at the truth."""
    power = (truth.view(np.int64) & EXPONENT).view(np.float64)
    ulp: Double = np.maximum(power * ULP_OF_ONE, SMALLEST)
    return np.abs(result - truth) / ulp


def in_smallest_normals(result: Single, truth: Double) -> Double:
    return np.abs(result - truth) / SMALLEST_NORMAL


def of_derivative(result: Single, truth: Double) -> Double:
    """The error of 1 - tanh², in ulp of 1. In float64 the difference of the squares is exact enough."""
    return np.abs((truth - result) * (truth + result)) / ULP_OF_ONE


def is_tail(numbers: Range) -> bool:
    """Whether the true sigmoid of `numbers` is below the least that the kernel returns."""
    return numbers.negative and numbers.edges[0] >= SIGMOID_BOUND


MEASURES = (
    Measure("sigmoid", "sigmoid", "ulp", in_ulp, lambda numbers: not is_tail(numbers)),
    Measure("sigmoid", "sigmoid, x < -87", "2^-126", in_smallest_normals, is_tail),
    Measure("tanh", "tanh", "ulp", in_ulp),
    Measure("tanh", "1 - tanh²", "2^-23", of_derivative),
)


def true_sigmoid(x: Double) -> Double:
    return 1.0 / (1.0 + np.exp(-x))


TRUTHS: dict[str, Callable[[Double], Double]] = {"sigmoid": true_sigmoid, "tanh": np.tanh}


@cache
def kernel_function(name: str) -> Callable[[Single], Single]:
    """The kernels' "sigmoid" or "tanh" over an array."""
    from numba import float32, njit

    from fastrnn.backends.numba.kernels import activations, simd

    function = getattr(activations, name)

    @njit
    def run(x: int, y: int, count: int) -> None:
        like = simd.zeros(float32)
        for i in range(0, count, simd.lanes(like)):
            simd.store_some(y, i, function(simd.load_some(like, x, i, count - i)), count - i)

    def apply(x: Single) -> Single:
        y = np.empty_like(x)
        run(x.ctypes.data, y.ctypes.data, len(x))
        return y

    return apply


def ranges() -> list[Range]:
    """All finite numbers."""
    ends = [min(bits_of(edge) + 1, FIRST_INFINITE) for edge in EDGES[1:]]
    firsts = [0, *ends[:-1]]
    return [
        Range(negative, first, end, edges)
        for negative in (False, True)
        for first, end, edges in zip(firsts, ends, pairwise(EDGES), strict=True)
    ]


def bits_of(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


def chunks(numbers: Range, stride: int) -> Iterator[Single]:
    """The numbers of a range, every `stride`-th of them and the last one."""
    sign = SIGN if numbers.negative else 0
    for first in range(numbers.first, numbers.end, CHUNK * stride):
        bits = np.arange(first, min(first + CHUNK * stride, numbers.end), stride, dtype=np.uint32)
        if stride > 1 and first + CHUNK * stride >= numbers.end and bits[-1] != numbers.end - 1:
            bits = np.append(bits, np.uint32(numbers.end - 1))
        yield (bits | np.uint32(sign)).view(np.float32)


def figures_of(x: Single, errors: Double) -> Figures:
    worst = int(errors.argmax())  # the first that is not a number, if there is one
    return Figures(len(x), float(errors.sum()), float(errors[worst]), float(x[worst]))


def sweep(stride: int, result: Sweep, advance: Callable[[int], object]) -> None:
    """Fills in `result`; `advance` is told how many arguments have been seen to."""
    for numbers in ranges():
        measures = [measure for measure in MEASURES if measure.applies(numbers)]
        for x in chunks(numbers, stride):
            wide = x.astype(np.float64)
            for name, truth_of in TRUTHS.items():
                y = kernel_function(name)(x)
                with np.errstate(over="ignore"):  # exp(-x) is infinite, the sigmoid of that 0
                    truth = truth_of(wide)
                for measure in measures:
                    if measure.function == name:
                        add(result, (measure, numbers.edges), figures_of(x, measure.error(y, truth)))
            advance(len(x))


def totals(result: Sweep) -> dict[Measure, Figures]:
    """The figures of each measure at all its arguments."""
    found: dict[Measure, Figures] = {}
    for (measure, _), figures in result.items():
        add(found, measure, figures)
    return found


def add(found: dict[Key, Figures], key: Key, figures: Figures) -> None:
    found[key] = found[key].join(figures) if key in found else figures


def table(result: Sweep) -> Table:
    """A row for each measure and range of magnitudes, and one for each measure."""
    shown = Table(box=SIMPLE_HEAD, title="errors of the float32 kernels")
    for heading in ("of", "|x|", "unit"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("arguments", "largest", "at x =", "mean"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for measure, total in totals(result).items():
        rows = [(range_text(edges), figures) for (which, edges), figures in result.items() if which is measure]
        if len(rows) > 1:
            rows.append(("all", total))
        for name, figures in rows:
            style = None if figures.passes else "red"
            shown.add_row(measure.what, name, measure.unit, *figure_cells(figures), style=style)
        shown.add_section()
    return shown


def range_text(edges: tuple[float, float]) -> str:
    low, high = ("2^-12" if edge == 2.0**-12 else f"{edge:g}" for edge in edges)
    return f"above {low}" if edges[1] == math.inf else f"up to {high}" if edges[0] == 0 else f"{low} to {high}"


def figure_cells(figures: Figures) -> tuple[str, str, str, str]:
    return f"{figures.arguments:,}", f"{figures.largest:.3f}", f"{figures.where:.9g}", f"{figures.mean:.4f}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    result: Sweep = {}
    status = OK
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    timers = (TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, *timers, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("sigmoid and tanh", total=2 * FIRST_INFINITE // options.stride)
            sweep(options.stride, result, lambda count: progress.advance(task, count))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    console_for_tables(PLAIN_WIDTH).print(table(result))
    return status or (OK if all(figures.passes for figures in totals(result).values()) else FAILURE)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.activations",
        description="Compares the CPU kernels' float32 sigmoid and tanh with float64 at every finite argument.",
    )
    stride = "take every N-th argument; an odd N, so that their last bits differ"
    parser.add_argument("--stride", type=positive_int, default=1, metavar="N", help=stride)
    return parser


if __name__ == "__main__":
    sys.exit(main())
