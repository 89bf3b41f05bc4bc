"""Every cell that this process knows, by the name under which layers, operators and kernels look it up.

A built-in cell's is its own. Others may share one, or be written anew while a program runs: theirs has a hash of the
program added, so that the same cell is found again and another one never is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from fastrnn.cells.built_in import CELLS
from fastrnn.cells.contract import Cell

KNOWN: dict[str, Cell] = dict(CELLS)
OPERATORS: dict[str, Cell | None] = {**CELLS, "cell": None}
"""The names of the operators, but for what they do, and whose they are: the last ones are of all other cells, and their
first argument is the cell's program as text."""


def known(cell: Cell) -> Cell:
    """The cell, from now on known, or the one like it that is known already."""
    return KNOWN.setdefault(cell.key, cell)


@cache
def of_text(text: str) -> Cell:
    """The cell of a program that `compiler.text.written` wrote; it is known from now on.

    Raises:
        ValueError: it is no such program.
    """
    from fastrnn.cells.cell import of_program  # which imports the compiler
    from fastrnn.cells.compiler.text import read

    return known(of_program(read(text), kept=False))


def told(cell: Cell | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a cell and of what else an operator takes, as one of the operator's arguments; see `OPERATORS`."""
    if cell is not None:
        return partial(function, cell)
    return lambda program, *arguments, **options: function(of_text(program), *arguments, **options)
