"""Where tensors lie, for kernels that take raw pointers.

Whatever takes an address must keep the tensor until the kernel has returned.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from torch import Tensor

from fastrnn import checks


def address(tensor: Tensor | None, offset: int = 0) -> int:
    """Of element number `offset` of a tensor's memory; 0 for None, which is what kernels take for what is absent.

    Raises:
        RuntimeError: there are elements, but no memory.
    """
    if tensor is None:
        return 0
    first = tensor.data_ptr()
    if first == 0 and tensor.numel() > 0:
        raise checks.not_allocated(f"a tensor of shape {tuple(tensor.shape)}")
    return first + offset * tensor.itemsize if offset else first


class Table:
    """Addresses, one after another, for kernels that look them up. Whatever takes its address must keep it, too."""

    __slots__ = ("address", "numbers")

    def __init__(self, addresses: Iterable[int]) -> None:
        self.numbers = array("q", addresses)
        self.address = self.numbers.buffer_info()[0]


def others(*groups: Sequence[Tensor | None]) -> tuple[list[int], list[Table]]:
    """What kernels take for a cell's states beside h, of each group: an address, of several states that of a table.

    The tables are to be kept as long.
    """
    if len(groups[0]) <= 2:
        last = [states[-1] for states in groups]
        return [0 if state is None else state.data_ptr() for state in last], []
    tables = [Table(map(address, states[1:])) for states in groups]
    return [table.address for table in tables], tables
