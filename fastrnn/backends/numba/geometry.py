"""How matrices are cut into panels of whole vectors: what the host must know to size and address memory."""

from __future__ import annotations

from dataclasses import dataclass

PANEL_VECTORS = 4
"""Vectors of a panel: with 6 rows they fill the 32 registers of AVX-512 (174 to 186 of 186 GFLOP/s a core measured)."""
CACHE_LINE = 64
CHUNK_ROWS = 128
"""Rows of gradients that are copied at a time where they are summed up: with a panel's vectors of each, 32 KB."""


def panel_units(x_gates: int, u_gates: int) -> int:
    """How many vectors of hidden units a panel holds for each gate, of both products alike: LSTM and GRU 1, RNN 4."""
    return max(1, PANEL_VECTORS // max(x_gates, u_gates))


def stream_units(x_gates: int, u_gates: int, registers: int) -> int:
    """As `panel_units`, of vectors in so many registers: a panel's sums are mostly those of one row, of which eight
    registers keep the multipliers busy."""
    gates = max(x_gates, u_gates)
    return max(1, (4 if gates == 1 else 2 if gates <= 6 else 1) // registers)


def divide_up(total: int, size: int) -> int:
    return -(-total // size)


@dataclass(frozen=True)
class Geometry:
    """How one kernel cuts its matrices."""

    lanes: int
    """numbers of a register"""
    itemsize: int
    """bytes of a number"""
    rows: int
    """the most rows of a tile"""
    tile: int
    """the most vectors of a tile"""
    registers: int = 1
    """of the vectors that a cell's step computes at a time"""

    @property
    def tile_bytes(self) -> int:
        """Of a tile's results, in whole cache lines."""
        return divide_up(self.tile * self.lanes * self.itemsize, CACHE_LINE) * CACHE_LINE

    def panels(self, units: int, vectors: int) -> int:
        """How many panels hold `units` hidden units, `vectors` vectors of them in each."""
        return divide_up(units, vectors * self.lanes)

    def padded(self, units: int, vectors: int = PANEL_VECTORS) -> int:
        """`units` rounded up to whole panels."""
        return self.panels(units, vectors) * vectors * self.lanes


class Arena:
    """Lays out pieces of memory one after the other, each at the start of a cache line."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> int:
        """The offset in bytes of a new piece of `size` bytes."""
        start = self.size
        self.size += divide_up(size, CACHE_LINE) * CACHE_LINE
        return start
