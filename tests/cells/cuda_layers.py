"""Small layers of random cells by the kernels in CUDA C++, compiled for the CPU: each way, beside the reference."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from hypothesis import assume

from fastrnn import extension
from fastrnn.cells import CELLS
from fastrnn.cells.cell import of_program
from fastrnn.cells.compiler.expression import below
from fastrnn.cells.contract import Cell
from fastrnn.cells.known import known
from tests.backends import cuda_host
from tests.backends.cuda_results import assert_as_reference
from tests.cells.random_cells import LARGE, program_or_nothing
from tests.random_layers import Shape, any_layer, compute, cotangents

LEAPING = {"where_le", "where_lt"}
TRIES = 3
SHAPE = Shape(steps=3, batch=9, hidden=40, directions=2, lengths=True, resets=True)


def check_layer(source: str) -> None:
    """Both directions with lengths and resets, the gates kept and recomputed, of a cell that these kernels take.

    In bfloat16, whose rounding has no sign that all errors share, as TF32's has, and of cells without `where`: results
    are judged beside others that were rounded otherwise, and a value that leaps tells nothing of either.
    """
    program = program_or_nothing(source)
    cell = known(of_program(program, kept=False))
    assume(cell.u_gates and not cell.over_units)
    assume(LEAPING.isdisjoint(e.op for e in below(program.after)))
    CELLS[cell.key] = cell
    try:
        torch.manual_seed(0)
        layer = any_layer(cell, SHAPE)
        truth = compute(layer, torch.float64, "reference", cotangents(layer))
        assume(all(bool((value.abs() < LARGE).all()) for value in truth.values()))
        _check_ways(cell)
    finally:
        del CELLS[cell.key]


def _check_ways(cell: Cell) -> None:
    with tempfile.TemporaryDirectory() as folder:
        built = cuda_host.of_cell(cell, Path(folder), ["Bfloat16"])
    load, extension._load = extension._load, lambda: built
    try:
        for way in cuda_host.WAYS:
            os.environ["FASTRNN_CUDA_WAY"] = way
            for recompute in (False, True):
                _assert_once(cell, recompute)
    finally:
        extension._load = load
        del os.environ["FASTRNN_CUDA_WAY"]


def _assert_once(cell: Cell, recompute: bool) -> None:
    """One of several layers is right: a relu may be turned over by rounding in one, a mistake is in all of them."""
    for last in (*[False] * (TRIES - 1), True):
        try:
            assert_as_reference(any_layer(cell, SHAPE), torch.bfloat16, recompute)
            return
        except AssertionError:
            if last:
                raise
