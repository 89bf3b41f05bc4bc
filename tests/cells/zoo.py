"""Cells that are not built in, most of them the library's: what the compiler, emitters and backends are tried with."""

from __future__ import annotations

from typing import Any

import fastrnn
from fastrnn.cells import Cell, Step, abs, layer_norm, mix, sigmoid, softplus, sqrt, tanh, where
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


@known
@fastrnn.cell(gates="ifgo")
def normalised_lstm(
    x: Any,
    u: Any,
    h: Any,
    c: Any,
    *,
    xi: Any,
    xf: Any,
    xg: Any,
    xo: Any,
    ui: Any,
    uf: Any,
    ug: Any,
    uo: Any,
    bi: Any,
    bf: Any,
    bg: Any,
    bo: Any,
    gc: Any,
    bc: Any,
) -> Any:
    """An LSTM with layer normalisation of both products, over all gates, and of its memory: all gains and biases."""
    of_x = layer_norm((x.i, x.f, x.g, x.o), (xi, xf, xg, xo), (bi, bf, bg, bo))
    of_u = layer_norm((u.i, u.f, u.g, u.o), (ui, uf, ug, uo))
    i, f, g, o = (a + b for a, b in zip(of_x, of_u, strict=True))
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(layer_norm(c, gc, bc)), c


ZOO: dict[str, Cell] = {
    cell.name: known(cell)
    for cell in (peephole_lstm, cifg, mgu, ligru, star, indrnn, mingru, slstm, zoneout_lstm, scaled_residual)
}
