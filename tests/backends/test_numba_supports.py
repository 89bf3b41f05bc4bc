"""What the numba backend serves, and the reasons that it gives for the rest."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

import fastrnn
from fastrnn.backends import numba as backend
from fastrnn.cells import CELLS, mix, sigmoid, tanh
from tests.cells.zoo import ZOO
from tests.random_layers import Shape, random_layer

pytest.importorskip("numba", exc_type=ImportError)


@fastrnn.cell(gates="nf")
def swapped(x: Any, u: Any, h: Any) -> Any:
    f = sigmoid(x.f + u.f)
    return mix(f, tanh(x.n + f * u.n), h)


@fastrnn.cell
def memorable(x: Any, u: Any, h: Any, c: Any) -> Any:
    f = sigmoid(x.f + u.f)
    return mix(f, h, c), f * c


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_in_every_floating_dtype(cell: str) -> None:
    layer = random_layer(cell, Shape(directions=2, lengths=True, resets=True))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert backend.supports(replace(layer, x=layer.x.to(dtype))) is None


def test_projection() -> None:
    assert backend.supports(random_layer("lstm", Shape(projection=2))) is None


def test_reasons() -> None:
    layer = random_layer("gru", Shape())
    assert backend.supports(replace(layer, x=layer.x.to("meta"))) == "it takes CPU tensors only, got meta"
    assert backend.supports(random_layer("gru", Shape(heads=3))) == "it has no heads (N = 3) yet"
    assert backend.supports(replace(layer, x=layer.x.cfloat())) == "it does not compute in torch.complex64"


def test_cells_beyond_the_kernels() -> None:
    """What each would need, and that all others are served."""
    needs = {
        "peephole_lstm": "parameters or inputs of a step",
        "indrnn": "parameters or inputs of a step",
        "scaled_residual": "parameters or inputs of a step",
        "zoneout_lstm": "parameters or inputs of a step",
        "slstm": "4 states",
        "star": "gates have shares of one product alone",
        "mingru": "gates have shares of one product alone",
        "swapped": "in another order than their gradients",
        "memorable": "looks at another state than the last",
    }
    for name, cell in (CELLS | ZOO | {"swapped": swapped, "memorable": memorable}).items():
        reason = backend.beyond_kernels(cell)
        assert (needs[name] in reason) if reason else name not in needs, (name, reason)
    assert set(needs) <= {*ZOO, "swapped", "memorable"}


def test_numba_missing_or_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    unchecked = backend.ready.__wrapped__
    assert unchecked() is None
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert unchecked() == "NUMBA_DISABLE_JIT forbids Numba to compile"
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert unchecked() == "numba is not installed"


def test_numba_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError("Numba needs NumPy 2.4 or less.\nGot NumPy 2.5.")

    monkeypatch.setattr(backend, "import_module", refuse)
    reason = "numba cannot be imported: Numba needs NumPy 2.4 or less. Got NumPy 2.5."
    assert backend.ready.__wrapped__() == reason
    monkeypatch.setattr(backend, "ready", lambda: reason)
    gru, x = fastrnn.GRU(3, 4), torch.zeros(5, 2, 3)
    with torch.inference_mode():
        assert fastrnn.explain(gru, x).reasons["numba"] == f"cannot: {reason}"
        torch.testing.assert_close(gru(x), fastrnn.to_torch(copy.deepcopy(gru))(x))
        with pytest.raises(RuntimeError, match=reason), fastrnn.use_backend("numba"):
            gru(x)
