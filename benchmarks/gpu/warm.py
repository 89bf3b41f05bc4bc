"""Part of stage `smoke`: Triton compiles what the race needs, on all cores, by calls of two steps and two sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks import precision
from benchmarks.cases import Case
from benchmarks.contenders import NotServed
from benchmarks.gpu import race
from benchmarks.gpu.points import trainings


def cases(part: int, parts: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`. Every `parts`-th kernel, from number `part` on."""
    small = [replace(case, shape=case.shape._replace(T=2, B=2)) for case in trainings()]
    modes = [replace(case, mode=mode) for case in small for mode in ("training", "inference")]
    for case in list(dict.fromkeys(modes))[part::parts]:
        yield f"compile {case.label}", partial(run, case)


def run(case: Case) -> dict[str, Any]:
    with case.grad_mode(), precision.products(case.dtype):
        try:
            race.Persistent().build(race.make_problem(case))()
        except NotServed as reason:
            return {"not served": str(reason)}
    return {}
