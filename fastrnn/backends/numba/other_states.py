"""Arguments of kernels that stand for a cell's states beside h: see `arguments.py`."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fastrnn.backends.addresses import address

TABLE_ITEM = 8
"""Bytes of an address."""


class Place(NamedTuple):
    """Where they are, one tensor for each; of two directions the other's lies `apart` bytes further."""

    address: int
    """0 if none is there"""
    apart: int
    table: array[int] | None
    """to be kept until the kernel has returned"""

    def of(self, direction: int) -> int:
        return self.address and self.address + direction * self.apart


def apart(others: int, size: int) -> int:
    """`Place.apart` of so many other states whose directions lie `size` bytes apart."""
    return others * TABLE_ITEM if others > 1 else size


def place(tensors: Sequence[Tensor | None], directions: int, size: int) -> Place:
    """Of one tensor for each other state, None where it is not there, whose directions lie `size` bytes apart."""
    between = apart(len(tensors), size)
    if len(tensors) < 2 or all(tensor is None for tensor in tensors):
        return Place(address(tensors[0]) if tensors else 0, between, None)
    firsts = [address(tensor) for tensor in tensors]
    table = array("q", (first and first + direction * size for direction in range(directions) for first in firsts))
    return Place(table.buffer_info()[0], between, table)


def of_steps(*groups: Sequence[Tensor | None]) -> tuple[list[int], list[Place]]:
    """The addresses for groups of all of a cell's states, h included, in one direction, and what is to be kept."""
    if len(groups[0]) <= 2:  # in less time; of one state the address is of no account
        last = [states[-1] for states in groups]
        return [0 if state is None else state.data_ptr() for state in last], []
    places = [place(states[1:], 1, 0) for states in groups]
    return [one.address for one in places], places
