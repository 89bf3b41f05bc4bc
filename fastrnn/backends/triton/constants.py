"""What every kernel knows of a cell and a dtype when it is compiled."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton.language as tl

from fastrnn.backends.gate_gradients import gate_blocks
from fastrnn.backends.layer import Layer
from fastrnn.backends.triton.kernels.cells import FUNCTIONS
from fastrnn.backends.triton.kernels.functions import Functions
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.contract import Cell
from fastrnn.cells.files import code


def cell_constants(layer: Layer) -> dict[str, Any]:
    """The compile-time arguments that kernels share, by name."""
    cell, functions = layer.cell, functions_of(layer.cell)
    reads_before = {*cell.reads_before, *cell.step_reads}  # the step's where it is computed once more
    return {
        **{name.upper(): function for name, function in functions._asdict().items()},
        "GX": len(cell.x_gates),
        "GU": len(cell.u_gates),
        "P": len(cell.parameters),
        "W": len(cell.blocks),
        "S": len(cell.saved),
        "PRE": gate_blocks(cell),
        "DGH": cell.dgh,
        "UNBOUNDED": tuple(name in cell.unbounded for name in cell.saved),
        "FINITE": cell.program is None,  # others may divide
        "READS_BEFORE": tuple(state in reads_before for state in cell.states),
        "READS_AFTER": tuple(state in cell.reads_after for state in cell.states),
        "APPROXIMATE": layer.x.dtype in (torch.float16, torch.bfloat16),
        "STATE": tl.float64 if layer.state_dtype == torch.float64 else tl.float32,
    }


def functions_of(cell: Cell) -> Functions:
    """A cell's functions: the built-in ones' are at hand, those of others are written when they are asked for."""
    return FUNCTIONS[cell.name] if cell.program is None else _made(cell.program)


@cache
def _made(program: Program) -> Functions:
    namespace: dict[str, Any] = {"__name__": f"fastrnn.backends.triton.made.{program.name}"}
    exec(code(program, "triton", kept=True), namespace)
    made: Functions = namespace["FUNCTIONS"][program.name]
    return made
