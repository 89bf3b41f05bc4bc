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
from fastrnn.cells.contract import Cell
from fastrnn.cells.known import known
from tests.backends import cuda_host
from tests.backends.cuda_results import assert_as_tf32
from tests.cells.random_cells import LARGE, program_or_nothing
from tests.random_layers import Shape, any_layer, compute, cotangents

WAYS = ("block", "cluster", "grid")
SHAPE = Shape(steps=3, batch=9, hidden=40, directions=2, lengths=True, resets=True)


def check_layer(source: str) -> None:
    """Both directions with lengths and resets, the gates kept and recomputed, of a cell that these kernels take."""
    cell = known(of_program(program_or_nothing(source), kept=False))
    assume(cell.u_gates and not cell.over_units)
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
    torch.backends.cudnn.allow_tf32 = True
    with tempfile.TemporaryDirectory() as folder:
        built = cuda_host.of_cell(cell, Path(folder), ["Tf32"], [64, 256])
    load, extension._load = extension._load, lambda: built
    try:
        for way in WAYS:
            os.environ["FASTRNN_CUDA_WAY"] = way
            for recompute in (False, True):
                assert_as_tf32(any_layer(cell, SHAPE), recompute)
    finally:
        extension._load = load
        del os.environ["FASTRNN_CUDA_WAY"]
