"""Heads: with what each panel of weights is multiplied.

A panel holds as many units as a few vectors have lanes, wherever heads begin and end. It is multiplied with all that
the heads of its units have, which lies side by side, and holds zeros where a unit meets what is another head's. There
are none where a head is some whole panels; else a panel is as deep as it is wide and two heads more, at most.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import NamedTuple

from fastrnn.backends.numba.geometry import divide_up

EXTENTS = 512
"""How many are kept."""


class Extents(NamedTuple):
    """What the panels of a matrix are multiplied with."""

    heads: int
    table: array[int]
    """of each panel the first number and how many; who has its address keeps it"""
    depth: int
    """the most of any panel"""

    @property
    def address(self) -> int:
        return self.table.buffer_info()[0]


@lru_cache(EXTENTS)
def extents(units: int, numbers: int, heads: int, width: int) -> Extents:
    """For panels of `width` out of so many units, which are multiplied with the `numbers` of their own head."""
    head, table = units // heads, array("q")
    for unit in range(0, units, width):
        first, end = unit // head, divide_up(min(unit + width, units), head)
        table.extend((first * numbers, (end - first) * numbers))
    return Extents(heads, table, max(table[1::2]))
