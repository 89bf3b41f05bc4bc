"""The CUDA kernels' machine code for sm_90a, without a GPU: nothing spills, and a step multiplies what it must."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from benchmarks import cuda_compile
from benchmarks.cuda_compile import Compiled
from fastrnn.cells import CELLS

pytestmark = pytest.mark.skipif(bool(cuda_compile.missing()), reason=str(cuda_compile.missing()))

SOURCES = sorted(source.stem for source in cuda_compile.SOURCES.glob("*.cu"))
REGISTERS = 64 * 1024
"""Of a multiprocessor, which a block has to itself."""


@pytest.fixture(scope="module")
def compiling() -> Iterator[dict[str, Future[list[Compiled]]]]:
    """By source, its kernels: compiled side by side while the first results are looked at."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {name: pool.submit(cuda_compile.compile_source, cuda_compile.SOURCES / f"{name}.cu") for name in SOURCES}


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_spills_and_every_tile_is_multiplied(source: str, compiling: dict[str, Future[list[Compiled]]]) -> None:
    compiled = compiling[source].result()
    assert len(compiled) > 0
    for one in compiled:
        kernel, code = one.kernel, one.assembly
        assert one.spilled == 0, kernel
        assert code.spills == 0, kernel
        assert code.is_loop, kernel
        assert code.products == kernel.tiles, kernel
        m, k = kernel.warps
        assert one.registers * m * k * 32 <= REGISTERS, kernel


def test_all_cells_have_both_kernels() -> None:
    assert set(SOURCES) == {f"{cell}_{operation}" for cell in CELLS for operation in ("forward", "backward")}
