"""Stage `cells`: cells of the library, and heads, beside a loop in plain torch, forward and with every gradient.

The loop is the reference backend: the cell's step by torch's operations, one step after the other, and autograd through
them. Like the race's contenders it is timed as a CUDA graph too, where no launch costs the host anything.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastrnn
from benchmarks import parity, precision
from benchmarks.cases import Shape
from benchmarks.contenders import NotServed, Run
from benchmarks.gpu import race, smoke
from benchmarks.gpu.figures import AUTO, LOOP
from benchmarks.own_cells import trained
from fastrnn.backends import CannotServe
from tests.tolerances import relative_error


class Point(NamedTuple):
    """A layer that is trained."""

    cell: str
    shape: Shape
    heads: int = 1
    dtype: str = "bfloat16"
    device: str = "cuda"

    @property
    def label(self) -> str:
        of_heads = f" {self.heads} heads" if self.heads > 1 else ""
        return f"{self.cell}{of_heads} training {self.shape} {self.dtype}"

    def layer(self, backend: str, dtype: torch.dtype) -> fastrnn.Recurrent:
        """The same weights in every call, but for their dtype."""
        cell = smoke.cell_of(self.cell)
        torch.manual_seed(0)
        made = fastrnn.Recurrent(cell, self.shape.I, self.shape.H, num_heads=self.heads, backend=backend)
        return made.to(self.device, getattr(torch, self.dtype)).to(dtype)


POINTS = (
    Point("peephole_lstm", Shape(128, 64, 256, 256)),
    Point("lstm", Shape(128, 64, 256, 256), heads=4),
    Point("mingru", Shape(1024, 16, 256, 256)),
    Point("slstm", Shape(128, 64, 256, 256)),
)


class Problem(NamedTuple):
    case: Point
    x: Tensor
    dy: Tensor


@dataclass(frozen=True)
class Trained:
    """A layer by one backend, in the point's dtype or in `dtype`."""

    backend: str
    dtype: torch.dtype | None = None
    tolerance: float = 0.03
    """Of 16 bits with approximate activations, in which products of other shapes round otherwise; `smoke` and `prove`
    are strict."""

    @property
    def name(self) -> str:
        return self.backend

    def build(self, problem: Problem) -> Run:
        """Raises NotServed."""
        dtype = self.dtype or problem.x.dtype
        layer = problem.case.layer(self.backend, dtype)
        x, dy = problem.x.to(dtype, copy=True).requires_grad_(), problem.dy.to(dtype)
        run: Run = trained(lambda x: layer(x)[0], x, list(layer.parameters()), dy)
        try:
            run()
        except CannotServe as error:
            raise NotServed(str(error)) from error
        return run


RACERS = (
    race.Racer(LOOP, Trained("reference")),
    race.Racer("triton", Trained("triton")),
    race.Racer(AUTO, Trained("auto")),
)


def cases(device: str = "cuda", dry: bool = False) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`. In a dry run Triton's interpreter races."""
    for point in POINTS:
        if dry:
            point = point._replace(shape=Shape(3, 2, 8, 8), device=device)
        yield point.label, partial(run, point, RACERS)


def run(point: Point, racers: Sequence[race.Racer]) -> dict[str, Any]:
    """The point and, for each racer, its times in µs as `race.run` has them."""
    told: dict[str, dict[str, Any]] = {racer.name: {} for racer in racers}
    problem = problem_of(point)
    with precision.products(point.dtype):
        standard = standard_of(problem)
        runs = race.checked(problem, standard, racers, told)
        race.eager(racers, runs, told, point.device)
        if point.device == "cuda":
            race.graphs(racers, runs, told)
            race.memory(racers, runs, told)
    del problem, runs
    gc.collect()
    if point.device == "cuda":
        torch.cuda.empty_cache()
    return {"point": point._asdict(), "times": told}


def problem_of(point: Point) -> Problem:
    T, B, I, H = point.shape
    x, dy = (torch.randn(T, B, size, device=point.device, dtype=getattr(torch, point.dtype)) for size in (I, H))
    return Problem(point, x, dy)


def standard_of(problem: Problem) -> parity.Standard:
    """The loop in a wider dtype, and the errors of the loop."""
    wider = race.WIDER.get(problem.case.dtype, torch.float32)
    ours, truth = (Trained("reference", dtype).build(problem)() for dtype in (None, wider))
    errors = [relative_error(one.detach(), other.detach()) for one, other in zip(ours, truth, strict=True)]
    names = ("y", "d x", *(f"d parameter {index}" for index in range(len(truth) - 2)))
    return parity.Standard(names, [tensor.detach() for tensor in truth], errors, problem.x.dtype, "the loop")
