"""Cells that are not built in, most of them the library's: what the compiler, emitters and backends are tried with."""

from __future__ import annotations

from typing import Any

import fastrnn
from fastrnn.cells import Cell, Step, abs, mix, sigmoid, softplus, sqrt, tanh, where
from fastrnn.cells.known import known
from fastrnn.cells.library import cifg, indrnn, ligru, mgu, mingru, peephole_lstm, slstm, star, zoneout_lstm


@fastrnn.cell
def scaled_residual(x: Any, u: Any, h: Any, *, scale: Any, floor: Any) -> Any:
    """Known to nobody: the gradient of `scale` is known to the recurrence alone, and every other function occurs."""
    a = tanh(x.a + u.a)
    b = where(h > floor, softplus(x.b - u.b), sqrt(1 + abs(u.b)))
    return h + scale * a / (1 + b)


@known
@fastrnn.cell
def seven(x: Any, u: Any, h: Any, c: Any, n: Any, *, p: Any, k: Step) -> Any:
    """Of gates, blocks and saved values more than four, which are as many as other kernels of Triton's have at once."""
    a, b = sigmoid(x.a + u.a) * tanh(x.b + u.b + p * n), mix(sigmoid(x.c + k * u.c), h, c)
    return tanh(a + u.d * x.d), a * x.e + b + sigmoid(u.e), tanh(b * u.f + x.f) * sigmoid(x.g + u.g)


ZOO: dict[str, Cell] = {
    cell.name: known(cell)
    for cell in (peephole_lstm, cifg, mgu, ligru, star, indrnn, mingru, slstm, zoneout_lstm, scaled_residual)
}
