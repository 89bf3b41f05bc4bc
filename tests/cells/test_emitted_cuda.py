"""The classes written for CUDA, compiled for the CPU, against the cells' PyTorch functions in float64."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from benchmarks.checkout import ROOT
from fastrnn.cells import CELLS, Cell, Step, abs, exp, log, maximum, minimum, mix, relu, softplus, sqrt, tanh
from fastrnn.cells.generate import programs
from tests.backends.cuda_host import with_cells
from tests.cells.rows import by_pytorch, random_arguments
from tests.cells.zoo import ZOO

COMPILER = os.environ.get("CXX") or "g++"
SOURCE = ROOT / "tests/backends/cuda/cells.cpp"
FLAGS = ("-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC")
UNITS = 64

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler ({COMPILER}) in PATH")


@fastrnn.cell
def extremes(x: Any, u: Any, h: Any, larger: Any, smaller: Any, positive: Any, soft: Any) -> Any:
    """Each function that meets what is no number or too large."""
    return h + x.a - u.a, maximum(x.a, u.a), minimum(x.a, u.a), relu(x.a), softplus(x.a)


@fastrnn.cell(gates=("union", "auto", "first"))
def awkward(x: Any, u: Any, h: Any, double: Any, *, gx: Any, γ: Any, this: Step) -> Any:
    """Names that C++ or what surrounds a step has already; blocks of u whose gates have another order."""
    new = tanh(x.union + 0.123456789 * u.union)
    pre = mix(exp(-abs(x.auto + u.auto)), γ * double, new - (gx - h)) * (1e-8 + this)
    errno = 3 - (pre - x.first) / (1e39 + x.first)
    Element = new / errno
    return Element, sqrt(1 + log(1 + pre * pre)) - (u.first - double)


OWN = {cell.name: cell for cell in (extremes, awkward)}
ALL = {**CELLS, **ZOO, **OWN}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The functions of all cells, each by its name."""
    folder = tmp_path_factory.mktemp("cells")
    others = [cell.program for cell in (ZOO | OWN).values() if cell.program is not None]
    sources = with_cells([*programs(), *others], folder)
    command = [COMPILER, *FLAGS, "-DFASTRNN_HOST", f"-I{sources}", str(SOURCE), "-o", str(folder / "cells.so")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "cells.so"))


def called(library: ctypes.CDLL, cell: Cell, given: Sequence[Tensor], sixteen_bits: bool) -> list[Tensor]:
    """As `by_pytorch`; the class's functions have each unit's values side by side."""
    given, units = [tensor.T.contiguous() for tensor in given], given[0].shape[1]
    counts = [len(group) for group in (cell.states, cell.saved, cell.blocks, cell.states)]
    results = [torch.full((units, count), torch.nan) for count in counts]
    pointers = [(ctypes.c_void_p * len(group))(*(one.data_ptr() for one in group)) for group in (given, results)]
    getattr(library, cell.name)(ctypes.c_bool(sixteen_bits), units, *pointers)
    return [result.T for result in results]


@pytest.mark.parametrize("sixteen_bits", [False, True], ids=["tf32", "16 bits"])
@pytest.mark.parametrize("cell", ALL.values(), ids=ALL)
def test_a_class_computes_what_the_cell_says(cell: Cell, sixteen_bits: bool, library: ctypes.CDLL) -> None:
    """On the CPU the activations of 16-bit elements are as precise as the others."""
    torch.manual_seed(0)
    given = random_arguments(cell, UNITS, torch.float32)
    expected = by_pytorch(cell, [tensor.double() for tensor in given])
    for got, want in zip(called(library, cell, given, sixteen_bits), expected, strict=True):
        torch.testing.assert_close(got, want.float())


def test_extreme_numbers_pass_as_in_torch(library: ctypes.CDLL) -> None:
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1e-30, 90.0, -90.0, 1e30])
    given = [one.reshape(1, -1) for one in torch.meshgrid(special, special, indexing="ij")]
    given += [torch.ones(count, given[0].shape[1]) for count in (5, 0, 0, 5)]
    got, want = called(library, extremes, given, False), by_pytorch(extremes, [one.double() for one in given])
    torch.testing.assert_close(got[0], want[0].float(), equal_nan=True)
    torch.testing.assert_close(got[2], want[2].float(), equal_nan=True)
