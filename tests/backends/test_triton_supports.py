"""What the Triton backend serves, the reasons that it gives for the rest, and how precisely it multiplies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fastrnn
from fastrnn import backends
from fastrnn.backends import triton as backend
from fastrnn.backends.triton import configurations
from fastrnn.cells import CELLS, library
from fastrnn.cells.known import known
from tests.random_layers import Shape, random_layer

interpreted = pytest.mark.skipif(
    not configurations.INTERPRETED or backend.ready() is not None, reason=backend.ready() or "kernels are compiled here"
)


@interpreted
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_in_every_floating_dtype(cell: str) -> None:
    layer = random_layer(cell, Shape(directions=2, lengths=True, resets=True, heads=3))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert backend.supports(replace(layer, x=layer.x.to(dtype))) is None


@interpreted
def test_reasons() -> None:
    layer = random_layer("gru", Shape())
    assert backend.supports(replace(layer, x=layer.x.to("meta"))) == "it takes CUDA tensors only, got meta"
    assert backend.supports(replace(layer, x=layer.x.cfloat())) == "it does not compute in torch.complex64"
    assert backend.supports(random_layer("lstm", Shape(projection=2))) == "it has no projections (proj_size) yet"
    endless = layer.x[:1, :1, :1].expand(2**31, 1, 1)
    assert "it takes sizes up to 2147483647" in str(backend.supports(replace(layer, x=endless)))
    many = random_layer("rnn_tanh", Shape(steps=1, batch=1, inputs=1, hidden=65536, heads=65536))
    assert backend.supports(many) == "it takes up to 65535 heads, got 65536"


def test_cpu_tensors_are_for_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "INTERPRETED", False)
    assert backend.supports(random_layer("gru", Shape())) == "it takes CUDA tensors only, got cpu"


def test_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = backend.ready.__wrapped__
    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert ready() == "torch is built without CUDA"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert ready() == "torch is built without CUDA, aten serves ROCm"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ready() == "torch finds no GPU (TRITON_INTERPRET=1 runs kernels on the CPU, slowly)"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend, "python_headers", lambda: "/usr/include")
    monkeypatch.setattr(backend, "c_compiler", lambda: "gcc")
    assert ready() is None
    monkeypatch.setattr(backend, "python_headers", lambda: None)
    assert ready() == "Triton's launcher needs Python.h, and it is not installed"
    monkeypatch.setattr(backend, "c_compiler", lambda: None)
    assert ready() == "Triton's launcher needs a C compiler, and there is none"
    monkeypatch.setattr(backend, "release", lambda package: (3, 6) if package == "triton" else (2, 4))
    monkeypatch.setattr(backend, "INTERPRETED", True)
    assert "Triton's interpreter needs numpy below 2.4, got " in str(ready())
    monkeypatch.setattr(backend, "release", lambda package: (3, 9))
    assert "the interpreter is known to work up to Triton 3.8, got " in str(ready())
    monkeypatch.setattr(backend, "release", lambda package: (3, 4))
    assert str(ready()).startswith("it needs triton 3.5 or later, got ")
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert ready() == "triton is not installed"


@interpreted
def test_auto_leaves_the_interpreter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer("gru", Shape())
    monkeypatch.setattr(backends.module("numba"), "ready", lambda: "numba is not installed")
    assert backends.operator_backend("auto", layer) == "reference"
    assert backends.operator_backend("triton", layer) == "triton"


@interpreted
def test_explain() -> None:
    gru = fastrnn.GRU(3, 4, backend="triton")
    assert fastrnn.explain(gru, torch.zeros(5, 2, 3)).layers == ["triton"]


def test_a_projection_is_refused_by_name() -> None:
    lstm = fastrnn.LSTM(3, 4, proj_size=2, backend="triton")
    with pytest.raises(
        RuntimeError, match=r"lstm: backend 'triton' cannot serve this call: it (has no proj|takes CUDA)"
    ):
        lstm(torch.zeros(5, 2, 3))


def test_float32_is_multiplied_as_torch_allows_its_own_layers() -> None:
    for value, expected in (("tf32", "tf32"), ("ieee", "tf32x3")):
        torch.backends.cudnn.rnn.fp32_precision = value
        assert configurations.precision(torch.float32) == expected
    assert configurations.precision(torch.bfloat16) == configurations.precision(torch.float16) == "16 bit"


def test_a_device_without_the_shared_memory_goes_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "INTERPRETED", False)
    layer = random_layer("lstm", Shape(hidden=100))
    layer = replace(layer, x=layer.x.to(torch.bfloat16))
    for kibibytes, fits in ((227, True), (99, False)):
        monkeypatch.setattr(configurations, "_shared_memory", lambda device, size=kibibytes * 1024: size)
        assert (configurations.forward_tile(layer) is not None) == fits


def test_rows_are_ordered() -> None:
    """The first row that serves is taken: of cells of some numbers and a precision, rows go from small to large."""
    for most in {row.most for row in configurations.ROWS}:
        for kind in ("16 bit", "tf32", "tf32x3"):
            sizes = [row.units for row in configurations.ROWS if row.most == most and kind in row.precisions]
            assert sizes
            assert sizes == sorted(set(sizes))


def test_every_row_is_the_first_of_some_cell() -> None:
    """None stands behind another that has all that it has; the largest cell that it serves is none of another one's."""
    for row in configurations.ROWS:
        for kind in row.precisions:
            first = next(one for one in configurations.ROWS if one.serves(row.most, kind, row.units))
            assert first is row


@pytest.mark.parametrize(
    ("name", "as_lstm"), [("cifg", True), ("zoneout_gru", False), ("slstm", False), ("mgu", False), ("indrnn", None)]
)
def test_a_cell_is_served_by_its_numbers(name: str, as_lstm: bool | None) -> None:
    row = configurations.row_of(known(getattr(library, name)).key, "16 bit", 64)
    if as_lstm is None:
        assert row is None, "there is no product to keep weights for"
    else:
        assert row is not None
        assert (row is configurations.row_of("lstm", "16 bit", 64)) == as_lstm


@pytest.mark.parametrize(
    ("cell", "most"), [("lstm", (128, 64, 64)), ("gru", (128, 64, 64)), ("rnn_tanh", (256, 128, 128))], ids=str
)
def test_built_in_cells_have_no_rows_of_larger_ones(cell: str, most: tuple[int, ...]) -> None:
    """Which were not compiled for them, and what is compiled is not looked at."""
    for kind, units in zip(("16 bit", "tf32", "tf32x3"), most, strict=True):
        assert configurations.row_of(cell, kind, units) is not None
        assert configurations.row_of(cell, kind, 2 * units) is None
