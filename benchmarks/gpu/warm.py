"""Part of stage `smoke`: Triton compiles what is timed later, on all cores.

What the race needs by calls of two steps and two sequences, what stage `cells` needs by that stage's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks import precision
from benchmarks.cases import Case
from benchmarks.contenders import NotServed
from benchmarks.gpu import cells as other_cells
from benchmarks.gpu import race
from benchmarks.gpu.points import trainings


def cases(part: int, parts: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`. Every `parts`-th call, from number `part` on."""
    small = [replace(case, shape=case.shape._replace(T=2, B=2)) for case in trainings()]
    modes = [replace(case, mode=mode) for case in small for mode in ("training", "inference")]
    for case in list(dict.fromkeys(modes))[part::parts]:
        yield f"compile {case.label}", partial(run, case)
    for point in other_cells.POINTS[part::parts]:
        yield f"compile {point.label}", partial(run_cell, point)


def run(case: Case) -> dict[str, Any]:
    with case.grad_mode(), precision.products(case.dtype):
        return told(lambda: race.Persistent().build(race.make_problem(case))())


def run_cell(point: other_cells.Point) -> dict[str, Any]:
    return told(lambda: other_cells.Trained("triton").build(other_cells.problem_of(point)))


def told(call: Callable[[], object]) -> dict[str, Any]:
    """That the call was made, or why nobody serves it."""
    try:
        call()
    except NotServed as reason:
        return {"not served": str(reason)}
    return {}
