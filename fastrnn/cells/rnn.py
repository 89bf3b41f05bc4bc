"""Simple recurrent network, as torch.nn.RNN: Elman (1990).

The output alone tells the derivative, nothing else is saved.
"""

from __future__ import annotations

from typing import Any

from fastrnn.cells.cell import cell
from fastrnn.cells.symbol import relu, tanh


@cell
def rnn_tanh(x: Any, u: Any, h: Any) -> Any:
    return tanh(x.a + u.a)


@cell
def rnn_relu(x: Any, u: Any, h: Any) -> Any:
    return relu(x.a + u.a)
