"""Long short-term memory, as torch.nn.LSTM: Hochreiter and Schmidhuber (1997), forget gate by Gers et al. (2000)."""

from __future__ import annotations

from fastrnn.cells.cell import cell
from fastrnn.cells.symbol import Shares, Symbol, sigmoid, tanh


@cell(gates="ifgo")
def lstm(x: Shares, u: Shares, h: Symbol, c: Symbol) -> tuple[Symbol, Symbol]:
    i, f = sigmoid(x.i + u.i), sigmoid(x.f + u.f)
    g, o = tanh(x.g + u.g), sigmoid(x.o + u.o)
    c = f * c + i * g
    return o * tanh(c), c
