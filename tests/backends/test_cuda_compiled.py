"""The CUDA kernels' machine code, without a GPU: nothing spills, a step multiplies what it must, and weights are loaded
by words.

For the oldest architecture of all and the oldest with clusters, or those that FASTRNN_CUDA_ARCHS names. What the
installed extension holds is read there, where it is of the same sources; everything else is compiled.
"""

from __future__ import annotations

import os
import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from benchmarks import cuda_compile
from benchmarks.cuda_compile import Compiled, Source
from fastrnn.cells import CELLS
from tests.backends import cuda_host

pytest_plugins = ["tests.backends.cuda_fixtures"]
pytestmark = pytest.mark.skipif(bool(cuda_compile.missing()), reason=str(cuda_compile.missing()))

ARCHITECTURES = re.findall(r"\w+", os.environ.get("FASTRNN_CUDA_ARCHS", "")) or cuda_compile.ARCHITECTURES
SOURCES = [(architecture, source) for architecture in ARCHITECTURES for source in cuda_compile.sources(architecture)]
REGISTERS = 64 * 1024
"""Of a multiprocessor, which a block has to itself."""
SHARED_MEMORY = {"120": 99 * 1024}
"""Of a block, where kernels that use more are compiled and cannot run: what they spill is of no consequence."""

RESETS, ROW = 3, 16
"""Bytes that are loaded one by one: resets, and forward in clusters a row of the state before the first step."""


@cache
def in_the_extension(architecture: str) -> list[Compiled] | None:
    """The kernels of the installed extension for an architecture, if it is of these sources."""
    library = cuda_compile.installed(architecture)
    return cuda_compile.read(library, architecture) if library else None


def kernels(architecture: str, source: Source) -> list[Compiled]:
    """Those of one source."""
    built = in_the_extension(architecture)
    if built is None:
        return cuda_compile.compile_source(source, architecture)
    return [one for one in built if one.kernel.source == source]


def can_run(one: Compiled, request: pytest.FixtureRequest) -> bool:
    """Whether the chip has the shared memory that a cluster kernel needs, by the extension's own table."""
    kernel, there_is = one.kernel, SHARED_MEMORY.get(one.architecture)
    if there_is is None or kernel.way != "cluster":
        return True
    table = request.getfixturevalue("host_extension").kernels()
    cell = kernel.source.name
    sought = {"way": kernel.way, "operation": kernel.operation, "cell": cell, "element": kernel.element}
    (row,) = [row for row in table if row.items() >= {**sought, "units": kernel.shape[0]}.items()]
    return bool(row["shared_bytes"] <= there_is)


def most_byte_loads(way: str, operation: str) -> int:
    """How many a kernel has that loads no weight so."""
    return RESETS + (ROW if (way, operation) == ("cluster", "forward") else 0)


@pytest.mark.parametrize(
    ("architecture", "source"),
    [
        pytest.param(
            *row,
            id=f"{row[0]}-{row[1]}",
            marks=() if row[1].name == "lstm" and row[0] != "80" else pytest.mark.exhaustive,
        )
        for row in SOURCES
    ],
)
def test_nothing_spills_every_tile_is_multiplied_and_weights_are_loaded_whole(
    architecture: str, source: Source, request: pytest.FixtureRequest
) -> None:
    compiled = kernels(architecture, source)
    assert len(compiled) > 0
    for one in compiled:
        kernel, code = one.kernel, one.assembly
        assert kernel.source == source, kernel
        assert one.stack == 0 or not can_run(one, request), kernel
        assert code.is_loop, kernel
        assert code.products == kernel.tiles, kernel
        assert one.registers * kernel.warps * 32 <= REGISTERS, kernel
        assert code.byte_loads <= most_byte_loads(kernel.way, kernel.operation), kernel


@pytest.mark.parametrize("way", cuda_compile.WAYS)
def test_all_cells_have_both_kernels(way: str) -> None:
    setup = cuda_host.setup_module()
    units = [(Path(source), cell) for source, cell in setup.units(setup.find_sources(cuda_compile.SOURCES))]
    sources = {Source(way, path.stem, cell) for path, cell in units if path.parent.name == way}
    assert {(source.operation, source.name) for source in sources} == set(product(cuda_compile.OPERATIONS, CELLS))
    assert sources <= set(cuda_compile.sources("90a"))
