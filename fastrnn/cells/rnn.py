"""Simple recurrent network, as torch.nn.RNN: Elman (1990).

The output alone tells the derivative, nothing else is saved.
"""

from __future__ import annotations

from fastrnn.cells.cell import cell
from fastrnn.cells.symbol import Shares, Symbol, relu, tanh


@cell
def rnn_tanh(x: Shares, u: Shares, h: Symbol) -> Symbol:
    return tanh(x.a + u.a)


@cell
def rnn_relu(x: Shares, u: Shares, h: Symbol) -> Symbol:
    return relu(x.a + u.a)
