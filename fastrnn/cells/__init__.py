"""Cells: each is written once, as a function of one unit of one sequence.

`CELLS` maps the names of the built-in ones to their contracts: every backend, operator, test and benchmark iterates
over this table or looks a cell up in it. The functions are what a cell is written with; see `fastrnn.cell`. To type
checkers x and u are `Shares`, all else is a `Symbol`. `docs/equations.md` derives what surrounds a cell.
"""

from fastrnn.cells.author import Step
from fastrnn.cells.built_in import CELLS
from fastrnn.cells.contract import Cell
from fastrnn.cells.symbol import (
    Shares,
    Symbol,
    abs,
    exp,
    log,
    log_sigmoid,
    maximum,
    minimum,
    mix,
    relu,
    sigmoid,
    softplus,
    sqrt,
    stop_gradient,
    tanh,
    where,
)
from fastrnn.cells.trace import CellError

__all__ = [
    "CELLS",
    "Cell",
    "CellError",
    "Shares",
    "Step",
    "Symbol",
    "abs",
    "exp",
    "log",
    "log_sigmoid",
    "maximum",
    "minimum",
    "mix",
    "relu",
    "sigmoid",
    "softplus",
    "sqrt",
    "stop_gradient",
    "tanh",
    "where",
]
