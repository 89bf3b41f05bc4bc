"""The CUDA kernels with cells that are not built in, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from fastrnn import backends, extension
from fastrnn.backends import cuda as backend
from fastrnn.backends.layer import Gradients, Residuals
from fastrnn.cells import CELLS, Cell
from tests.backends import cuda_host
from tests.backends.cuda_results import assert_as_reference, assert_as_tf32, assert_schedules_agree, in_dtype
from tests.cells.zoo import ZOO, seven
from tests.random_layers import Shape, any_layer, random_layer, rounded
from tests.tolerances import FLOOR, relative_error

pytest_plugins = ["tests.backends.cuda_fixtures"]
pytestmark = [
    pytest.mark.skipif(bool(cuda_host.missing()), reason=str(cuda_host.missing())),
    pytest.mark.usefixtures("poisoned_memory", "tf32"),
]

OTHERS: dict[str, Cell] = {cell.name: cell for cell in (*ZOO.values(), seven) if cell.u_gates}
EVERYTHING = Shape(steps=4, batch=9, hidden=40, directions=2, lengths=True, resets=True)
SHAPES = (EVERYTHING, Shape(hidden=12, heads=2, bias=False), Shape(steps=3, hidden=70, reverse=True, lengths=True))
NARROW = {"block": 64, "cluster": 512, "grid": 2048}
"""The units of a head that each way has room for, of any cell of these in any dtype."""


@pytest.fixture(scope="module")
def of_seven(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return cuda_host.of_cell(seven, tmp_path_factory.mktemp("seven"), ["Bfloat16"])


@pytest.fixture(scope="module", params=("slstm",))  # of OTHERS: each is a minute of a compiler
def of_one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, ModuleType]:
    cell = OTHERS[request.param]
    return cell, cuda_host.of_cell(cell, tmp_path_factory.mktemp("cell"), ["Bfloat16", "Tf32"])


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, Cell, str], None]:
    """Has the backend take an extension for a cell, one way alone."""

    def taken(built: ModuleType, cell: Cell, way: str) -> None:
        monkeypatch.setenv("FASTRNN_CUDA_WAY", way)
        monkeypatch.setattr(extension, "_load", lambda: built)
        monkeypatch.setitem(CELLS, cell.key, cell)

    return taken


def assert_gradients_of_every_state(cell: Cell, shape: Shape) -> None:
    """From what the reference saved, and from gradients of every state of every step and of the last."""
    half = in_dtype(rounded(any_layer(cell, shape), torch.bfloat16), torch.bfloat16)
    kept = backends.module("reference").forward(half, history=True, gates=True)
    residuals = Residuals(kept.states, kept.saved)
    grads = Gradients(*([torch.randn_like(y) for y in group] for group in (kept.states, kept.finals)))
    got = backend.backward(half, residuals, grads)
    want = backends.module("reference").backward(half, residuals, grads)
    for name, group, wanted in zip(got._fields, got, want, strict=True):
        for tensor, other in zip(group, wanted, strict=True):
            assert relative_error(tensor, other) <= 5 * FLOOR[torch.bfloat16], name


@pytest.mark.parametrize("way", cuda_host.WAYS)
def test_a_cell_of_seven_gates_and_three_states(
    way: str, of_seven: ModuleType, take: Callable[..., None], seeded: Callable[[int], None]
) -> None:
    """With a parameter, an input of its steps, and more blocks than saved values; its gates are not in their order."""
    take(of_seven, seven, way)
    for recompute in (False, True):
        assert_as_reference(random_layer(seven.key, EVERYTHING), torch.bfloat16, recompute)
    assert_gradients_of_every_state(seven, EVERYTHING)
    if way != "cluster":  # whose fibers take a minute
        assert_schedules_agree(random_layer(seven.key, replace(EVERYTHING, steps=3)), torch.bfloat16, seeded)


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", cuda_host.WAYS)
def test_every_cell_with_a_product(
    way: str, of_one: tuple[Cell, ModuleType], take: Callable[..., None], seeded: Callable[[int], None]
) -> None:
    cell, built = of_one
    take(built, cell, way)
    for shape in SHAPES:
        if shape.hidden > NARROW[way]:
            continue
        layer = any_layer(cell, shape)
        for recompute in (False, True):
            assert_as_reference(layer, torch.bfloat16, recompute)
            assert_as_tf32(layer, recompute)
        assert_gradients_of_every_state(cell, shape)
    assert_schedules_agree(any_layer(cell, EVERYTHING), torch.bfloat16, seeded)
    assert_schedules_agree(any_layer(cell, EVERYTHING), torch.float32, seeded)
