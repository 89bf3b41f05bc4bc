"""Recurrent dropout by Triton's kernels, all steps in one launch and step by step, beside the reference.

`test_backends.py` has the built-in cells in every dtype, `tests/layers/test_recurrent_dropout.py` loops in plain
PyTorch, `test_triton_compiled.py` the machine code.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastrnn import backends
from fastrnn.backends import triton as backend_module
from fastrnn.backends.triton import configurations, ways
from fastrnn.cells import CELLS, library
from fastrnn.cells.known import known
from tests.backends import test_triton_ways
from tests.random_layers import Shape, any_layer, random_layer
from tests.selection import exhaustive

reason = backend_module.ready()
pytestmark = pytest.mark.usefixtures("poisoned_memory")
needs_a_device = pytest.mark.skipif(reason is not None, reason=f"triton: {reason}")
on_triton = pytest.mark.parametrize("backend", ["triton"])  # names the backend, and with it the device

OTHERS = (library.peephole_lstm, library.zoneout_gru, library.layer_norm_lstm)
"""With parameters, with an input of the steps, and with means over units."""
ALL = {name: CELLS[name] for name in ("lstm", "gru", "rnn_tanh")} | {cell.name: known(cell) for cell in OTHERS}
EVERYTHING = Shape(steps=5, batch=4, hidden=5, directions=2, lengths=True, resets=True, dropped=True)
ALONE = Shape(steps=3, batch=1, hidden=7, bias=False, reverse=True, dropped=True)
HEADS = Shape(steps=4, batch=9, hidden=51, heads=3, directions=2, resets=True, dropped=True)
"""Of more sequences than a program of the forward has."""
TILES = (
    configurations.Tile(configurations.FORWARD_BATCH, 4, 0),
    configurations.Tile(configurations.BACKWARD_BATCH, 4, 0),
)
SHORT = (
    ("lstm", EVERYTHING, False),
    ("gru", EVERYTHING, True),
    ("gru", ALONE, False),
    ("lstm", ALONE, True),
    ("peephole_lstm", EVERYTHING, True),
    ("layer_norm_lstm", EVERYTHING, False),
)
"""The cases of the short run: cell, shape, and whether each step is a launch."""


@needs_a_device
@on_triton
@pytest.mark.parametrize("recompute", [False, *exhaustive(True)], ids=lambda value: "recomputed" if value else "kept")
@pytest.mark.parametrize(
    ("name", "shape", "by_steps"),
    [
        pytest.param(
            *case,
            id=f"{name}-{shape}-{'steps' if by_steps else 'persistent'}",
            marks=() if case in SHORT else pytest.mark.exhaustive,
        )
        for name in ALL
        for shape in (EVERYTHING, ALONE, HEADS)
        for by_steps in (False, True)
        if shape.heads == 1 or not ALL[name].over_units
        for case in [(name, shape, by_steps)]
    ],
)
def test_a_layer(
    name: str, shape: Shape, by_steps: bool, recompute: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = any_layer(ALL[name], shape)
    assert backend_module.supports(layer) is None
    if by_steps:
        test_triton_ways.force(monkeypatch, None)
    elif configurations.INTERPRETED:
        monkeypatch.setattr(ways, "forward_tile", lambda layer: TILES[0])
        monkeypatch.setattr(ways, "backward_tile", lambda layer: TILES[1])
        monkeypatch.setattr(ways, "steps", None)
    test_triton_ways.assert_as_reference(layer, recompute=recompute)


@needs_a_device
@on_triton
def test_a_kernel_that_is_too_large_is_not_launched(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a built-in cell the table knows the kernels that have no mask."""
    said = test_triton_ways.refuse_large(monkeypatch)
    test_triton_ways.assert_as_reference(any_layer(CELLS["gru"], Shape(steps=2)))
    assert not said
    test_triton_ways.assert_as_reference(any_layer(CELLS["gru"], Shape(steps=2, dropped=True)))
    assert [text.partition(":")[0] for text in said] == [
        f"gru with recurrent dropout, 6 units, {direction}" for direction in ("forward", "backward")
    ]
    assert said[0].endswith("planted")


@pytest.mark.parametrize("name", ["lstm", "peephole_lstm"])
@pytest.mark.parametrize("hidden", [64, 640], ids=["persistent", "steps"])
def test_auto_takes_it_on_a_gpu_as_without_a_mask(name: str, hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that need not be there, whose tensors have no numbers."""
    monkeypatch.setattr(backend_module, "INTERPRETED", False)
    monkeypatch.setattr(backend_module, "ready", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for dropped in (False, True):
        layer = random_layer(ALL[name].key, Shape(hidden=hidden, dropped=dropped))
        with FakeTensorMode():
            there: Any = layer.with_tensors(lambda tensor: torch.empty(tensor.shape, device="cuda"))
        for operation in ("forward", "backward"):
            assert backends.operator_backend("auto", there, operation) == "triton"
