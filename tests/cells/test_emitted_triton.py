"""The functions that Triton's kernels are handed of each cell, beside the same cell's in PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from benchmarks.checkout import variables_of_children
from fastrnn import backends
from fastrnn.cells import CELLS, Cell, Step, log, maximum, minimum, relu, sqrt, where
from tests.cells.rows import by_pytorch, random_arguments
from tests.cells.zoo import ZOO

pytest.importorskip("triton")

reason = backends.module("triton").ready()
needs_a_device = pytest.mark.skipif(reason is not None, reason=f"triton: {reason}")

N = 64


@fastrnn.cell
def chosen(x: Any, u: Any, h: Any, tanh: Any, *, inside: Step) -> Any:
    """What the cells of the zoo leave out: numbers as results of choices and as states, and names that are taken."""
    sigmoid = where(x.a <= h, 0.1, -0.7) + where(tanh < 0.3, 0.3, x.a)
    relu_ = minimum(x.a, maximum(0.1, u.b)) - log(sqrt(relu(u.b) + 1.1))
    return minimum(0.7, -sigmoid) * relu_ - where(inside < -9.0, float("inf"), x.b), 0 * h + 0.1


ALL = {**CELLS, **ZOO, "chosen": chosen}


def computed(cell: Cell, arguments: Sequence[Tensor], approximate: bool = False) -> list[Tensor]:
    """States after a step, saved values, blocks and gradients of the states before it, by one launch."""
    from fastrnn.backends.triton.constants import functions_of
    from tests.cells.triton_cells import cell_kernel

    x = arguments[0]
    results = [x.new_empty(len(group), N) for group in (cell.states, cell.saved, cell.blocks, cell.states)]
    counts = tuple(map(len, arguments[:5]))
    cell_kernel[(1,)](*arguments, *results, *functions_of(cell)[:3], COUNTS=counts, N=N, APPROXIMATE=approximate)
    return results


@needs_a_device
@pytest.mark.parametrize("backend", ["triton"])  # names the backend, and with it the device
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("cell", ALL.values(), ids=list(ALL))
def test_a_cell_is_the_same_as_in_pytorch(cell: Cell, dtype: torch.dtype, backend: str) -> None:
    arguments = random_arguments(cell, N, dtype)
    for got, want in zip(computed(cell, arguments), by_pytorch(cell, arguments), strict=True):
        tolerance = 1e-13 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@needs_a_device
@pytest.mark.parametrize("backend", ["triton"])
def test_cells_of_one_name_have_functions_of_their_own(backend: str) -> None:
    """Although Triton reads the source of both when it runs them first."""
    from fastrnn.backends.triton.constants import functions_of

    def scaled(factor: float) -> Cell:
        @fastrnn.cell
        def twice(x: Any, h: Any) -> Any:
            return factor * x.a * h

        return twice

    cells = [scaled(2.0), scaled(3.0)]
    assert functions_of(cells[0]) != functions_of(cells[1])
    arguments = random_arguments(cells[0], N)
    for cell in cells:
        torch.testing.assert_close(computed(cell, arguments), by_pytorch(cell, arguments))


COMPILES = """
import sys
import torch, triton
from benchmarks.triton_compile import NoGPU
from tests.cells import test_emitted_triton as tests

triton.runtime.driver.set_active(NoGPU(90))
from tests.cells.triton_cells import cell_kernel

launch = type(cell_kernel).__getitem__
type(cell_kernel).__getitem__ = lambda kernel, grid: lambda *a, **k: kernel.warmup(*a, grid=grid, **k)
for cell in map(tests.ALL.get, sys.argv[1:]):
    for dtype, approximate in ((torch.float64, False), (torch.float32, False), (torch.float32, True)):
        tests.computed(cell, tests.random_arguments(cell, tests.N, dtype), approximate)
"""


@pytest.mark.parametrize(
    "names",
    [pytest.param(["slstm", "chosen"], id="some"), pytest.param(list(ALL), id="all", marks=pytest.mark.exhaustive)],
)
def test_functions_compile_for_a_gpu_that_need_not_be_there(names: list[str]) -> None:
    """The interpreter lets pass what Triton's language does not have."""
    environment = variables_of_children()
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run([sys.executable, "-c", COMPILES, *names], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
