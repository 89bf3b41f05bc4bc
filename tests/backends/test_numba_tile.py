"""The product of a tile: its values, that a row does not depend on its tile, and that nothing spills to the stack."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

numba = pytest.importorskip("numba", exc_type=ImportError)

from llvmlite.binding import get_host_cpu_name  # noqa: E402
from numba import njit  # noqa: E402

from fastrnn.backends.numba.kernels import simd, tile  # noqa: E402

DTYPES = [(numba.float32, torch.float32), (numba.float64, torch.float64)]
WIDTHS = [3, 4, 12]
SPILLED_VECTOR = r"\bv?mov\w*\s+%[xyz]mm\d+, -?\d*\((?:{})\)"
"""With the registers that point to the stack."""
FRAME_POINTER = re.compile(r"\bmovq\s+%rsp, %rbp\b")
"""What makes rbp one of them."""


@cache
def compiled(dtype: Any, vecs: int) -> Any:
    product = tile.product(vecs)

    @njit
    def run(rows: int, bias: int, a: int, a_row: int, w: int, k: int, out: int, out_row: int) -> None:
        product(simd.zeros(dtype), rows, bias, a, a_row, w, k, out, out_row, w, 64)

    return run


@pytest.mark.parametrize("k", [0, 1, 7, 64])
@pytest.mark.parametrize("vecs", WIDTHS)
@pytest.mark.parametrize(("dtype", "number"), DTYPES)
def test_product(dtype: Any, number: torch.dtype, vecs: int, k: int) -> None:
    width, most = vecs * simd.Vector(dtype).lanes, tile.tile_rows(vecs)
    a, w = torch.randn(most, k + 3, dtype=number)[:, :k], torch.randn(k, width, dtype=number)
    bias = torch.randn(width, dtype=number)
    whole = None
    for rows in range(most, 0, -1):
        out = torch.full((most, width + 5), torch.nan, dtype=number)
        compiled(dtype, vecs)(
            rows, *map(int, (bias.data_ptr(), a.data_ptr(), k + 3, w.data_ptr(), k)), out.data_ptr(), width + 5
        )
        torch.testing.assert_close(out[:rows, :width], a[:rows] @ w + bias)
        assert out[rows:].isnan().all()
        assert out[:, width:].isnan().all()
        whole = out if whole is None else whole
        assert torch.equal(out[:rows, :width], whole[:rows, :width])


def test_rows_may_run_backwards() -> None:
    dtype, rows = numba.float64, 2
    width = 4 * simd.Vector(dtype).lanes
    a, w = torch.randn(rows, 5, dtype=torch.float64), torch.randn(5, width, dtype=torch.float64)
    bias, out = torch.zeros(width, dtype=torch.float64), torch.empty(rows, width, dtype=torch.float64)
    last = a.data_ptr() + (rows - 1) * 5 * a.itemsize
    compiled(dtype, 4)(rows, bias.data_ptr(), last, -5, w.data_ptr(), 5, out.data_ptr(), width)
    torch.testing.assert_close(out, a.flip(0) @ w)


@pytest.mark.parametrize("vecs", WIDTHS)
@pytest.mark.parametrize(("dtype", "number"), DTYPES)
def test_accumulators_stay_in_registers(dtype: Any, number: torch.dtype, vecs: int) -> None:
    run = compiled(dtype, vecs)
    zeros = np.zeros(vecs * simd.Vector(dtype).lanes)
    run(1, *[zeros.ctypes.data] * 2, 0, zeros.ctypes.data, 0, zeros.ctypes.data, 0)
    assembly = "\n".join(run.inspect_asm().values())
    (body,) = re.findall(r"^fastrnn_tile\w+:\n(.*?)^\.Lfunc_end", assembly, re.MULTILINE | re.DOTALL)
    stack = "%rsp|%rbp" if FRAME_POINTER.search(body) else "%rsp"
    spilled = re.findall(SPILLED_VECTOR.format(stack), body)
    if spilled and get_host_cpu_name().startswith("znver") and (dtype, vecs) == (numba.float64, 3):
        pytest.xfail("LLVM unrolls this tile's loop for Zen, and loads more factors ahead than there are registers for")
    assert not spilled
    for rows in range(1, tile.tile_rows(vecs) + 1):
        parts = tile.parts(vecs, rows)
        assert [v for part in parts for v in part] == list(range(vecs))
        assert max((rows + 1) * len(part) + 1 for part in parts) <= simd.register_count()


def test_even_shares() -> None:
    share = tile.share.py_func
    assert [share(32, 6, part) for part in range(6)] == [(0, 6), (6, 6), (12, 5), (17, 5), (22, 5), (27, 5)]
    assert [share(2, 2, part) for part in range(2)] == [(0, 1), (1, 1)]
