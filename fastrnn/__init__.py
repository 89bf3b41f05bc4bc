"""fastrnn: fused recurrent layers for PyTorch.

`RNN`, `GRU`, `LSTM` and their cells take the place of their torch.nn namesakes; `fastrnn.functional` has them without
modules. `Recurrent` is a layer of any cell, `LayerNormLSTM` and `LayerNormGRU` are of normalised ones. `accelerate` and
`to_torch` convert the layers of a model; `fastrnn.onnx`, `fastrnn.export` and `fastrnn.keras` take models elsewhere,
`fastrnn.xlstm` weights of xLSTM here. `use_backend` chooses what computes, `explain` says what would, and `probe` shows
gates, states and gradients over time; `weight_drop` drops weights in training, and `stream`
serves step by step. Importing this package imports neither numba nor triton; a backend loads what it needs when it is
first asked for.
"""

from fastrnn import main_interpreter  # noqa: F401  before torch is imported

# isort: split
import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from fastrnn import functional
from fastrnn.backends import use_backend
from fastrnn.cells.cell import cell
from fastrnn.convert import accelerate, to_torch
from fastrnn.dropping import weight_drop
from fastrnn.explaining import explain
from fastrnn.layer_norm import LayerNormGRU, LayerNormLSTM
from fastrnn.nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from fastrnn.probing import probe
from fastrnn.recurrent import Recurrent, RecurrentCell
from fastrnn.streaming.stream import stream

if TYPE_CHECKING:
    from fastrnn import export as export
    from fastrnn import heads as heads
    from fastrnn import keras as keras
    from fastrnn import onnx as onnx
    from fastrnn import xlstm as xlstm

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "LayerNormGRU",
    "LayerNormLSTM",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "accelerate",
    "cell",
    "explain",
    "functional",
    "probe",
    "stream",
    "to_torch",
    "use_backend",
    "weight_drop",
]

_WHEN_ASKED_FOR = ("export", "keras", "onnx", "xlstm")
"""Modules that few programs need: `fastrnn.onnx` imports its own at its first use."""


def __getattr__(name: str) -> ModuleType:
    if name in _WHEN_ASKED_FOR:
        return importlib.import_module(f"fastrnn.{name}")
    raise AttributeError(f"module 'fastrnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHEN_ASKED_FOR})
