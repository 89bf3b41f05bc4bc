"""What the numba backend serves, and the reasons that it gives for the rest."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import fastrnn
from fastrnn.backends import numba as backend
from fastrnn.cells import CELLS, Cell
from tests.cells.zoo import ZOO
from tests.random_layers import Shape, random_layer

pytest.importorskip("numba", exc_type=ImportError)


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_in_every_floating_dtype(cell: str) -> None:
    layer = random_layer(cell, Shape(directions=2, lengths=True, resets=True))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert backend.supports(replace(layer, x=layer.x.to(dtype))) is None


@pytest.mark.parametrize("shape", [Shape(projection=2), Shape(heads=3)], ids=str)
def test_projections_and_heads(shape: Shape) -> None:
    assert backend.supports(random_layer("lstm", shape)) is None


def test_reasons() -> None:
    layer = random_layer("gru", Shape())
    assert backend.supports(replace(layer, x=layer.x.to("meta"))) == "it takes CPU tensors only, got meta"
    assert backend.supports(replace(layer, x=layer.x.cfloat())) == "it does not compute in torch.complex64"


@pytest.mark.parametrize("cell", ZOO.values(), ids=lambda cell: cell.name)
def test_cells_of_anyone(cell: Cell) -> None:
    assert backend.supports(random_layer(cell.key, Shape(directions=2, lengths=True, resets=True))) is None


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
