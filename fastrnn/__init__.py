"""fastrnn: fused recurrent layers for PyTorch.

`RNN`, `GRU`, `LSTM` and their cells take the place of their torch.nn namesakes. Importing this package imports neither
numba nor triton; a backend loads what it needs when it is first asked for.
"""

from fastrnn import main_interpreter  # noqa: F401  before torch is imported

# isort: split
from fastrnn import functional
from fastrnn.backends import use_backend
from fastrnn.convert import accelerate, to_torch
from fastrnn.explain import explain
from fastrnn.nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from fastrnn.probe import probe

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "accelerate",
    "explain",
    "functional",
    "probe",
    "to_torch",
    "use_backend",
]
