"""The cells: each one's equations and their derivatives, written out once.

`CELLS` maps a name to its `Cell`. Every backend, operator, test and benchmark iterates over this table or looks
a cell up in it; `docs/equations.md` derives what the modules of this package compute.
"""

from fastrnn.cells.gru import GRU
from fastrnn.cells.lstm import LSTM
from fastrnn.cells.rnn import RNN_RELU, RNN_TANH
from fastrnn.cells.spec import Cell

CELLS: dict[str, Cell] = {cell.name: cell for cell in (RNN_TANH, RNN_RELU, LSTM, GRU)}

__all__ = ["CELLS", "Cell"]
