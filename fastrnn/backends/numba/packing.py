"""Weights in panels, for one call: one launch lays out all of a layer's matrices."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from fastrnn.backends.addresses import address
from fastrnn.backends.numba import launch
from fastrnn.backends.numba.arguments import FIELDS, PackAddresses, PackShape
from fastrnn.backends.numba.compile import Kernel
from fastrnn.backends.numba.geometry import PANEL_VECTORS, Arena, Geometry, panel_units
from fastrnn.backends.numba.sharing import Pace

PACK_PER_THREAD = 64 * 1024
"""Numbers: below this, waking a second thread costs as much as it saves."""
SECONDS_PER_NUMBER = 5e-10
"""What one takes one thread, more or less: what the weights' memory gives."""
_COUNTER = FIELDS["pack"].index("counter")
_MEMORY = launch.HEADER + FIELDS["pack"].index("memory")
"""Where in a launch's memory."""


class Packing:
    """Plans where the panels of a layer's matrices will lie, and lays them out in each call."""

    def __init__(self, kernel: Kernel, arena: Arena, threads: int) -> None:
        self._kernel = kernel
        self._arena = arena
        self._threads = threads
        self._jobs: list[PackShape] = []
        self._numbers = 0

    def rows(self, rows: int, columns: int, gates: int) -> int:
        """Plans for a (gates·rows, columns) matrix whose rows become lanes, gates side by side -> where it will lie."""
        units = panel_units(gates)
        return self._add(self._geometry.panels(rows, units), 0, rows, columns, gates, units, columns)

    def columns(self, rows: int, columns: int) -> int:
        """Plans for a (rows, columns) matrix whose columns become lanes -> where it will lie."""
        return self._add(self._geometry.panels(columns, PANEL_VECTORS), 1, rows, columns, 1, PANEL_VECTORS, rows)

    @property
    def _geometry(self) -> Geometry:
        return self._kernel.geometry

    def _add(self, panels: int, straight: int, rows: int, columns: int, gates: int, units: int, k: int) -> int:
        numbers = panels * k * units * gates * self._geometry.lanes
        target = self._arena.take(numbers * self._geometry.itemsize)
        self._numbers += numbers
        tasks = panels + sum(job.panels for job in self._jobs)
        self._jobs.append(PackShape(0, 0, panels, straight, rows, columns, gates, units, target))
        self._jobs[0] = self._jobs[0]._replace(jobs=len(self._jobs), tasks=tasks)
        return target

    def prepare(self, sources: Iterable[Tensor]) -> Packed:
        """What packs the matrices, in the order in which they were planned for."""
        kept = [source if source.stride(1) == 1 else source.contiguous() for source in sources]
        blocks = launch.no_blocks()
        for job, source in zip(self._jobs, kept, strict=True):
            blocks.extend((*job, *PackAddresses(0, 0, address(source), source.stride(0))))
        threads = max(1, min(self._threads, self._numbers // PACK_PER_THREAD))
        pace = Pace(("pack", self._numbers), 1, self._numbers * SECONDS_PER_NUMBER, threads)
        return Packed(self._kernel.address, threads, blocks, kept, pace)


class Packed(NamedTuple):
    """A launch that packs matrices, but for the memory into which."""

    kernel: int
    threads: int
    blocks: array[int]
    sources: list[Tensor]
    pace: Pace

    def run(self, memory: int) -> None:
        """Packs them into the memory at this address. Several threads may do so at the same time."""
        blocks = self.blocks[:]
        blocks[_MEMORY] = memory
        launch.start(self.kernel, self.threads, blocks, _COUNTER, self.pace)
