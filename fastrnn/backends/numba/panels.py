"""Weights in panels: one launch lays out all of a layer's matrices."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.backends.addresses import address
from fastrnn.backends.numba import launch
from fastrnn.backends.numba.arguments import FIELDS, PackAddresses, PackShape
from fastrnn.backends.numba.compile import Kernel
from fastrnn.backends.numba.extents import Extents
from fastrnn.backends.numba.geometry import PANEL_VECTORS, Arena, Geometry
from fastrnn.backends.numba.sharing import Pace
from fastrnn.backends.numba.tensors import cast, dense_rows

PACK_PER_THREAD = 64 * 1024
"""Numbers: below this, waking a second thread costs as much as it saves."""
SECONDS_PER_NUMBER = 5e-10
"""What one takes one thread, more or less: what the weights' memory gives."""
_COUNTER = FIELDS["pack"].index("counter")
_MEMORY = launch.HEADER + FIELDS["pack"].index("memory")
"""Where in a launch's memory."""


Source = tuple[int, int]
"""A matrix whose rows are dense: its address, and how many elements its rows lie apart."""


def source(matrix: Tensor) -> Source:
    """Of a (rows, columns) with dense rows, or of a (rows,) as a single column."""
    return address(matrix), matrix.stride(0)


def readable(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The tensors as `source` takes them, in `dtype`: themselves where they are so already."""
    return [dense_rows(t, dtype) if t.dim() > 1 else cast(t, dtype) for t in tensors]


class Panels:
    """Where the panels of a layer's matrices will lie: what depends on sizes only."""

    def __init__(self, kernel: Kernel, arena: Arena, threads: int) -> None:
        self._kernel = kernel
        self._arena = arena
        self._threads = threads
        self._jobs: list[PackShape] = []
        self._extents: list[Extents | None] = []
        """kept for their tables, whose addresses the jobs have"""
        self._numbers = 0

    def rows(self, rows: int, columns: int, gates: int, units: int, of: Extents | None = None) -> int:
        """Plans for a (gates·rows, columns) matrix whose rows become lanes, gates side by side -> where it will lie.

        A panel holds `units` vectors of each gate. Of several heads, there are such matrices one after another.
        """
        panels = self._geometry.panels(rows * (of.heads if of else 1), units)
        return self._add(panels, 0, rows, columns, gates, units, of.depth if of else columns, of)

    def columns(self, rows: int, columns: int, of: Extents | None = None) -> int:
        """Plans for a (rows, columns) matrix whose columns become lanes -> where it will lie; `of` as in `rows`."""
        panels = self._geometry.panels(columns * (of.heads if of else 1), PANEL_VECTORS)
        depth = of.depth * (rows // columns) if of and of.heads > 1 else rows
        return self._add(panels, 1, rows, columns, 1, PANEL_VECTORS, depth, of)

    @property
    def _geometry(self) -> Geometry:
        return self._kernel.geometry

    def _add(
        self,
        panels: int,
        straight: int,
        rows: int,
        columns: int,
        gates: int,
        units: int,
        depth: int,
        of: Extents | None = None,
    ) -> int:
        numbers = panels * depth * units * gates * self._geometry.lanes
        target = self._arena.take(numbers * self._geometry.itemsize)
        self._numbers += numbers
        tasks = panels + sum(job.panels for job in self._jobs)
        self._extents.append(of)
        heads, table = (of.heads, of.address) if of else (1, 0)
        self._jobs.append(PackShape(0, 0, panels, straight, rows, columns, gates, units, heads, table, depth, target))
        self._jobs[0] = self._jobs[0]._replace(jobs=len(self._jobs), tasks=tasks)
        return target

    def launch(self, sources: Iterable[Source]) -> PanelsLaunch:
        """What lays out the matrices that are there, in the order in which they were planned for."""
        blocks = launch.no_blocks()
        for job, source in zip(self._jobs, sources, strict=True):
            blocks.extend((*job, *PackAddresses(0, 0, *source)))
        threads = max(1, min(self._threads, self._numbers // PACK_PER_THREAD))
        pace = Pace(("pack", self._numbers), 1, self._numbers * SECONDS_PER_NUMBER, threads)
        return PanelsLaunch(self._kernel.address, threads, blocks, pace)


class PanelsLaunch(NamedTuple):
    """A launch that lays out matrices, but for the memory into which. What it reads is kept by who made it."""

    kernel: int
    threads: int
    blocks: array[int]
    pace: Pace

    def run(self, memory: int) -> None:
        """Lays them out in the memory at this address. Several threads may do so at the same time."""
        blocks = self.blocks[:]
        blocks[_MEMORY] = memory
        launch.start(self.kernel, self.threads, blocks, _COUNTER, self.pace)
