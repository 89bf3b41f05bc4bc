"""The default cases for pytest-benchmark: `pytest benchmarks`, a group for each case.

A contender is checked against torch.nn before it is timed; one that does not cover a case is skipped.
"""

from __future__ import annotations

from itertools import product

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import parity
from benchmarks.cases import DEFAULT_CELLS, DEFAULT_MODES, SHAPES, Case, make_problem
from benchmarks.contenders import Contender, FastRNN, NotServed, TorchNN

CASES = [Case(cell, mode, shape) for cell, mode, shape in product(DEFAULT_CELLS, DEFAULT_MODES, SHAPES["default"])]
CONTENDERS: list[Contender] = [TorchNN(), FastRNN("auto")]


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
@pytest.mark.benchmark(max_time=0.5, min_rounds=5, warmup=True, warmup_iterations=2, disable_gc=True)
def test_speed(case: Case, contender: Contender, benchmark: BenchmarkFixture) -> None:
    benchmark.group = case.label
    problem = make_problem(case)
    with case.grad_mode():
        try:
            run = contender.build(problem)
        except NotServed as reason:
            pytest.skip(str(reason))
        parity.check(run(), parity.standard(problem))
        benchmark(run)
