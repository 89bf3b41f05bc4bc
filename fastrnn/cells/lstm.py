"""Long short-term memory, as torch.nn.LSTM: Hochreiter and Schmidhuber (1997), forget gate by Gers et al. (2000)."""

from __future__ import annotations

from typing import Any

from fastrnn.cells.cell import cell
from fastrnn.cells.symbol import sigmoid, tanh


@cell(gates="ifgo")
def lstm(x: Any, u: Any, h: Any, c: Any) -> Any:
    i, f = sigmoid(x.i + u.i), sigmoid(x.f + u.f)
    g, o = tanh(x.g + u.g), sigmoid(x.o + u.o)
    c = f * c + i * g
    return o * tanh(c), c
