"""What a user finds in `fastrnn`: by attribute, in `dir`, and in `help`."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest
from torch import nn

import fastrnn


def test_modules_are_there_once_they_are_asked_for() -> None:
    """And none of the packages that they serve, nor they themselves, before."""
    program = """
import sys, fastrnn
modules = {"export", "keras", "onnx", "xlstm"}
assert not {f"fastrnn.{name}" for name in modules} & set(sys.modules) and modules | {"probe"} <= set(dir(fastrnn))
fastrnn.keras.from_keras, fastrnn.onnx.export, fastrnn.export.decompositions, fastrnn.xlstm.from_xlstm
print([name for name in ("onnx", "onnxscript", "onnx_ir", "torch.onnx", "keras", "numba") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_no_name_hides_a_module() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(fastrnn.__path__)}
    for name in submodules & set(dir(fastrnn)):
        assert isinstance(getattr(fastrnn, name), ModuleType), name
    assert isinstance(fastrnn.probing.Record, type)


def test_other_names_are_errors() -> None:
    with pytest.raises(AttributeError, match=r"^module 'fastrnn' has no attribute 'nothing'$"):
        fastrnn.nothing  # noqa: B018


LAYERS = ("RNN", "GRU", "LSTM")
OWN = {"num_heads": 1, "recurrent_dropout": 0.0, "backend": None, "recompute": False}


@pytest.mark.parametrize("name", LAYERS)
def test_constructors_of_layers_show_torchs_order_and_defaults(name: str) -> None:
    """`proj_size` where it is allowed, `nonlinearity` before `bias`, what is fastrnn's by keyword only."""
    shown = inspect.signature(getattr(fastrnn, name)).parameters
    theirs = {
        argument: parameter.default
        for argument, parameter in inspect.signature(nn.RNNBase.__init__).parameters.items()
        if argument not in ("self", "mode", *([] if name == "LSTM" else ["proj_size"]))
    }
    if name == "RNN":
        theirs |= {"nonlinearity": "tanh"}
    assert {argument: parameter.default for argument, parameter in shown.items()} == theirs | OWN
    order = [argument for argument in shown if argument not in ("nonlinearity", *OWN)]
    assert order == [argument for argument in theirs if argument != "nonlinearity"]
    assert list(shown).index("bias") == (4 if name == "RNN" else 3)
    assert all(shown[argument].kind is inspect.Parameter.KEYWORD_ONLY for argument in OWN)


NAMED_BY_CELLS = (fastrnn.Recurrent, fastrnn.RecurrentCell)
"""They take the inputs of their cell's steps."""


@pytest.mark.parametrize("name", [name for name in fastrnn.__all__ if name not in ("functional", "explain")])
def test_signatures_and_docstrings_are_of_their_own(name: str) -> None:
    """No `*args, **kwargs`, but for what is handed on to a model, or named by a cell, and nothing that torch says of
    another class."""
    public = getattr(fastrnn, name)
    for function in (public, *([public.__init__, public.forward] if isinstance(public, type) else [])):
        taken = inspect.signature(function).parameters
        kinds = {one.kind for name, one in taken.items() if not (public in NAMED_BY_CELLS and name == "inputs")}
        assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}, function
        assert function.__doc__, function
