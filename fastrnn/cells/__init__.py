"""Cells: each is written once, as a function of one unit of one sequence.

`CELLS` maps the names of the built-in ones to their contracts: every backend, operator, test and benchmark iterates
over this table or looks a cell up in it. The functions are what a cell is written with; see `fastrnn.cell`. To type
checkers x and u are `Shares`, all else is a `Symbol`. `library` has cells that are not built in; it is imported, and
its cells made, when it is first asked for. `docs/equations.md` derives what surrounds a cell.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from fastrnn.cells.author import Step
from fastrnn.cells.built_in import CELLS
from fastrnn.cells.contract import Cell
from fastrnn.cells.normalisation import layer_norm, mean, rms_norm
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

if TYPE_CHECKING:
    from fastrnn.cells import library as library

__all__ = [
    "CELLS",
    "Cell",
    "CellError",
    "Shares",
    "Step",
    "Symbol",
    "abs",
    "exp",
    "layer_norm",
    "log",
    "log_sigmoid",
    "maximum",
    "mean",
    "minimum",
    "mix",
    "relu",
    "rms_norm",
    "sigmoid",
    "softplus",
    "sqrt",
    "stop_gradient",
    "tanh",
    "where",
]


def __getattr__(name: str) -> ModuleType:
    if name == "library":
        return importlib.import_module("fastrnn.cells.library")
    raise AttributeError(f"module 'fastrnn.cells' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "library"})
