"""Cells beyond the built-in ones, each one function of a few lines, to be imported, copied and changed.

Each is what `fastrnn.Recurrent` and `fastrnn.RecurrentCell` take. Its docstring gives the paper, the equations, the
order of its gates and what to know before training: `help(fastrnn.cells.library.star)`, and
`python -m fastrnn cell fastrnn.cells.library:star` shows what becomes of it. In the equations x.g is the gate g's share
of the input's product, W_ih x + b_ih, and u.g that of the state's, W_hh h + b_hh; h' is h after the step.
"""

from fastrnn.cells.library.grus import ligru, mgu, star
from fastrnn.cells.library.lstms import cifg, peephole_lstm, slstm
from fastrnn.cells.library.normalised import layer_norm_gru, layer_norm_lstm
from fastrnn.cells.library.without_product import indrnn, mingru, minlstm
from fastrnn.cells.library.zoneout import zoneout_gru, zoneout_lstm

__all__ = [
    "cifg",
    "indrnn",
    "layer_norm_gru",
    "layer_norm_lstm",
    "ligru",
    "mgu",
    "mingru",
    "minlstm",
    "peephole_lstm",
    "slstm",
    "star",
    "zoneout_gru",
    "zoneout_lstm",
]
