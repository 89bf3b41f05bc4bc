"""Gated recurrent unit, as torch.nn.GRU: Cho et al. (2014), with the reset gate applied after the product.

The bias of n's share of the state lies inside the reset gate. cuDNN computes the same; so does Keras with
`reset_after=True`. Cho et al. reset h before the product.
"""

from __future__ import annotations

from fastrnn.cells.cell import cell
from fastrnn.cells.symbol import Shares, Symbol, mix, sigmoid, tanh


@cell(gates="rzn")
def gru(x: Shares, u: Shares, h: Symbol) -> Symbol:
    r, z = sigmoid(x.r + u.r), sigmoid(x.z + u.z)
    n = tanh(x.n + r * u.n)
    return mix(z, h, n)
