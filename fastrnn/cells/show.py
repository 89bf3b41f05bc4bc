"""`python -m fastrnn cell module:name`: what a cell is, as equations, and the source that it becomes.

`--source` prints a backend's source instead. The notation: c₋ is the state c before a step and c' after it, x_i and u_i
are a gate's shares of the input's and of the state's product, dy is the gradient of y; dc' is what arrives at c' from
outside the step.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from io import TextIOWrapper

from fastrnn.cells.compiler import linearity
from fastrnn.cells.contract import Cell
from fastrnn.cells.emit import equations
from fastrnn.cells.emit.backends import EMITTERS
from fastrnn.cells.trace import CellError


def main(arguments: Sequence[str]) -> int:
    """Runs the command with these arguments. Returns its exit status."""
    parser = argparse.ArgumentParser("python -m fastrnn cell", description=__doc__)
    parser.add_argument("cell", metavar="module:name", help="a module, and the cell's name in it")
    parser.add_argument("--source", choices=tuple(EMITTERS), help="print this backend's source")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every locale has the letters of equations
    options = parser.parse_args(arguments)
    try:
        cell = _found(options.cell)
    except (LookupError, CellError) as error:
        parser.error(str(error.args[0]))
    assert cell.program is not None
    if options.source == "cuda" and cell.over_units:
        parser.error(f"there is none: CUDA's kernels take no mean over units, as {cell.name} does")
    try:
        print(EMITTERS[options.source].text(cell.program).rstrip() if options.source else "\n".join(described(cell)))
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _found(where: str) -> Cell:
    """The cell at module:name.

    Raises:
        LookupError: there is none.
        CellError: its module defines one that cannot be a cell.
    """
    module_name, _, name = where.partition(":")
    if not module_name or not name or module_name.startswith("."):
        raise LookupError(f"{where}: a cell is named by its module and its name there, as in fastrnn.cells.lstm:lstm")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks another
        raise LookupError(f"there is no module {module_name}") from None
    cell = getattr(module, name, None)
    if cell is None:
        cells = ", ".join(key for key, value in vars(module).items() if isinstance(value, Cell)) or "none"
        raise LookupError(f"{module_name} has no {name}; its cells: {cells}")
    if not isinstance(cell, Cell):
        raise LookupError(f"{where} is no cell but a {type(cell).__name__}: `fastrnn.cell` makes one of a function")
    if cell.program is None:
        raise LookupError(f"{where} has no equations: its function has, in a module of fastrnn.cells")
    return cell


RUNS = {
    "numba": "on the CPU, all steps in one launch",
    "triton": "on a GPU, all steps in one launch or each in its own",
    "cuda": "on a GPU if asked for by name, by kernels that are compiled at run time",
    "reference": "everywhere, a loop of plain PyTorch",
}
"""Where a layer of any cell runs, by backend."""
WITHOUT_PRODUCT = {
    "triton": "on a GPU, all steps in one launch, or in two as a scan",
    "cuda": "no: its kernels are built around the state's product",
}
"""Of cells without one."""


def described(cell: Cell) -> Iterator[str]:
    """What the command prints, by lines."""
    program = cell.program
    assert program is not None
    sections = {
        "step": equations.step(program),
        "derivative": equations.derivative(program),
        "after the recurrence, for all steps at once": equations.outside(program),
    }
    yield f"{cell.name}: states {_list(cell.states)}"
    for title, lines in sections.items():
        if lines:
            yield from ("", title, *(f"    {line}" for line in lines))
    reads = [f"{state}₋" for state in cell.reads_before] + [f"{state}'" for state in cell.reads_after]
    linear = [name for name, of in (("step", linearity.forward), ("derivative", linearity.backward)) if of(program)]
    summary = {
        "gates of x": cell.x_gates,
        "gates of u": cell.u_gates,
        "parameters": cell.parameters,
        "inputs of a step": cell.inputs,
        "blocks of gradients": cell.blocks,
        "saved": cell.saved,
        "of these, may exceed 16 bits": cell.unbounded,
        "states that the derivative reads": reads,
        "linear recurrences": linear,
    }
    width = max(map(len, summary))
    yield ""
    yield from (f"{title:{width}}  {_list(names)}" for title, names in summary.items())
    runs = _runs(cell).items()
    yield from ("", "fastrnn.Recurrent runs it by", *(f"    {backend:10} {where}" for backend, where in runs))


def _runs(cell: Cell) -> dict[str, str]:
    if cell.over_units:
        return RUNS | {
            "cuda": "no: units look at one another",
            "triton": "on a GPU, layers of one head, all steps in one launch or each in its own",
        }
    if not cell.u_gates:
        return RUNS | WITHOUT_PRODUCT
    if len(cell.u_gates) > 16 or max(len(cell.states), len(cell.inputs)) > 8:
        return RUNS | {"cuda": "no: its kernels take up to 16 gates of the state, 8 states and 8 inputs of a step"}
    return RUNS


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
