"""Cells that take means over units, by Triton's kernels beside the reference: programs hold all units of a sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastrnn
from benchmarks import triton_compile
from benchmarks.triton_compile import MASKED, MASKED_LEAN, Kernel
from fastrnn import backends
from fastrnn.backends import triton as backend_module
from fastrnn.backends.triton import configurations, pointwise, steps
from fastrnn.backends.triton.configurations import Tile
from fastrnn.cells import layer_norm, mean, mix, rms_norm, sigmoid, tanh
from fastrnn.cells.emit.backends import EMITTERS
from fastrnn.cells.known import known
from fastrnn.cells.library import indrnn, layer_norm_lstm
from tests.backends import test_triton_ways
from tests.backends.test_triton_other_cells import EVERYTHING, assert_exact
from tests.random_layers import Shape, any_layer
from tests.selection import exhaustive

reason = backend_module.ready()
pytestmark = pytest.mark.usefixtures("poisoned_memory")
needs_a_device = pytest.mark.skipif(reason is not None, reason=f"triton: {reason}")
interpreted = pytest.mark.skipif(
    not configurations.INTERPRETED or reason is not None, reason=reason or "kernels are compiled here"
)
on_triton = pytest.mark.parametrize("backend", ["triton"])  # names the backend, and with it the device


@fastrnn.cell(gates="ifgo")
def own_norms(x: Any, u: Any, h: Any, c: Any, *, gain: Any) -> Any:
    """Each share of an LSTM by itself: eight means are taken at once."""
    i, f, g, o = (layer_norm(a) + layer_norm(b, gain) for a, b in ((x.i, u.i), (x.f, u.f), (x.g, u.g), (x.o, u.o)))
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


@fastrnn.cell
def normed_state(x: Any, u: Any, h: Any, *, gain: Any) -> Any:
    """A GRU whose state is scaled before it is kept."""
    r, z = sigmoid(x.r + u.r), sigmoid(x.z + u.z)
    return mix(z, rms_norm(h, gain), tanh(x.n + r * u.n))


@fastrnn.cell
def shared(x: Any, u: Any, h: Any, m: Any) -> Any:
    """A state that is a mean, and so is its gradient: the same number for all units."""
    return tanh(x.a + u.a) * m, mean(h)


@fastrnn.cell
def centred(x: Any, h: Any, *, gain: Any) -> Any:
    """No product of the state, and no scan either."""
    return layer_norm(h + x.a, gain)


CELLS = {cell.name: known(cell) for cell in (layer_norm_lstm, own_norms, normed_state, shared, centred)}
WIDE = Shape(steps=3, batch=18, hidden=19, directions=2, lengths=True)
SHAPES = (EVERYTHING, Shape(steps=3, batch=1, bias=False, reverse=True), WIDE, Shape(steps=2, hidden=150))
SHORT = (
    ("layer_norm_lstm", EVERYTHING, True, False),
    ("shared", EVERYTHING, False, False),
    ("normed_state", EVERYTHING, False, True),
    ("centred", SHAPES[3], False, True),
)
"""The cases of the short run."""
TILES = (Tile(configurations.FORWARD_BATCH, 4, 0), Tile(configurations.BACKWARD_BATCH, 4, 0))


@needs_a_device
@on_triton
@pytest.mark.parametrize(
    ("name", "shape", "kept", "by_steps"),
    [
        pytest.param(
            *case,
            id=f"{case[0]}-{case[1]}-{'kept' if case[2] else 'recomputed'}-{'steps' if case[3] else 'persistent'}",
            marks=() if case in SHORT else pytest.mark.exhaustive,
        )
        for name in CELLS
        for shape in SHAPES
        for kept in (True, False)
        for by_steps in ((True, False) if CELLS[name].u_gates and shape.hidden < 150 else (True,))
        for case in [(name, shape, kept, by_steps)]
    ],
)
def test_a_layer(
    name: str, shape: Shape, kept: bool, by_steps: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, by persistent kernels of a GPU in bfloat16; where 150 units are a program of two warps, these are
    padded to 256."""
    layer = any_layer(CELLS[name], shape)
    assert layer.cell.over_units
    if by_steps:
        test_triton_ways.force(monkeypatch, None)
    elif configurations.INTERPRETED:
        monkeypatch.setattr("fastrnn.backends.triton.ways.forward_tile", lambda layer: TILES[0])
        monkeypatch.setattr("fastrnn.backends.triton.ways.backward_tile", lambda layer: TILES[1])
    else:
        test_triton_ways.assert_as_reference(layer, torch.bfloat16, recompute=not kept)
        return
    assert_exact(layer, kept)


@needs_a_device
@on_triton
@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_a_layer_in_storage_dtypes(name: str, dtype: torch.dtype, backend: str) -> None:
    """As the built-in cells are judged."""
    for recompute in (False, True):
        test_triton_ways.assert_as_reference(any_layer(CELLS[name], EVERYTHING), dtype, recompute)


@interpreted
@on_triton
def test_rows_that_shared_memory_has_no_room_for_are_not_fetched_ahead(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cell without a product: of others a launch is one step. No program of a cell without means is so large."""
    asked: list[int] = []

    class Planted(pointwise.Launcher):
        def __init__(self, kernel: Any, arguments: Any, constants: dict[str, Any], warps: int, stages: int) -> None:
            super().__init__(kernel, arguments, constants, warps, stages)
            assert constants["STAGES"] == stages
            asked.append(stages)

        def too_large(self) -> str | None:
            return "planted" if asked[-1] > 1 else None

    monkeypatch.setattr(pointwise, "Launcher", Planted)
    assert_exact(any_layer(CELLS["centred"], EVERYTHING), kept=False)
    assert asked == [configurations.STAGES, 1] * 2
    asked.clear()
    assert_exact(any_layer(known(indrnn), EVERYTHING), kept=False)
    assert asked == [configurations.STAGES] * 2


@needs_a_device
@on_triton
@pytest.mark.parametrize("together", [True, False], ids=["together", "one by one"])
@pytest.mark.parametrize("units_first", [True, False], ids=["units first", "sequences first"])
@pytest.mark.parametrize("count", [*exhaustive(1, 2, 4), 3, 5])
def test_means(count: int, units_first: bool, together: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several tiles at once, which the interpreter computes as compiled kernels do only where it is told to."""
    from fastrnn.backends.triton.kernels import means
    from tests.backends.triton_means import means_kernel

    if configurations.INTERPRETED:
        monkeypatch.setattr(means, "_ONE_BY_ONE", not together)
    device = "cpu" if configurations.INTERPRETED else "cuda"
    x = torch.randn(count, 4, 16, dtype=torch.float64, device=device)
    x[..., 11:] = float("nan")
    out = x.new_empty(count, 4)
    means_kernel[(1,)](x, out, COUNT=count, B=4, D=11, DP=16, UNITS_FIRST=units_first)
    torch.testing.assert_close(out, x[..., :11].mean(-1))


@pytest.mark.parametrize(("name", "forward", "backward"), [("layer_norm_lstm", 4, 4), ("own_norms", 2, 3)])
def test_means_that_wait_for_none_of_each_other_are_taken_together(name: str, forward: int, backward: int) -> None:
    """Those of a phase are: forward the shares' means, their variances, then the memory's mean and variance."""
    program = CELLS[name].program
    assert program is not None
    of_step, of_derivative = EMITTERS["triton"].text(program).split("_derivative(", 1)
    assert of_step.count("means((") == forward
    assert of_derivative.count("means((") == backward


@interpreted
def test_reasons() -> None:
    several = any_layer(CELLS["shared"], Shape(steps=2, heads=2))
    assert backend_module.supports(several) == (
        "it has no means over units, as the cell shared takes them, of several heads, got 2"
    )
    wide = any_layer(CELLS["centred"], Shape(steps=1, batch=1, hidden=2049))
    assert backend_module.supports(wide) == (
        "it has means over units, as the cell centred takes them, of up to 2048 units, got 2049"
    )
    assert backend_module.supports(any_layer(CELLS["centred"], Shape(steps=1, batch=1, hidden=2048))) is None


def test_the_extension_takes_none() -> None:
    layer = any_layer(CELLS["shared"], Shape(steps=2))
    assert backends.module("cuda").supports(layer) == "it has no means over units, which the cell shared takes"


def test_a_program_holds_a_row() -> None:
    """With four units a thread up to 2048 units; of other cells it is one warp."""
    for hidden, tile in ((6, (8, 16, 1)), (128, (1, 128, 1)), (150, (1, 256, 2)), (2048, (1, 2048, steps.MOST_WARPS))):
        assert steps.tile_of(any_layer(CELLS["centred"], Shape(steps=1, batch=1, hidden=hidden))) == tile
    other = any_layer(fastrnn.cells.CELLS["gru"], Shape(steps=1, hidden=150))
    assert steps.tile_of(other) == (1, 128, 1)


def kernels_of_steps() -> list[Any]:
    """Those of several warps: of a small cell of most units, and of a large cell."""
    cells = ((shared, 2048), (layer_norm_lstm, 512))
    return [
        pytest.param(
            Kernel(direction, cell.name, "16 bit", "bfloat16", units, None, variant, 90, program=cell.program.text),
            id=f"{direction}-{cell.name}-{units}",
            marks=() if (cell, direction) == (shared, "backward") else pytest.mark.exhaustive,
        )
        for cell, units in cells
        for direction, variant in (("forward", MASKED), ("backward", MASKED_LEAN))
        if cell.program is not None
    ]


@pytest.mark.parametrize("kernel", kernels_of_steps())
def test_a_step_of_several_warps_compiles_for_a_gpu_that_need_not_be_there(kernel: Kernel) -> None:
    """And its warps wait for each other: for means, and once before what is stored."""
    missing = triton_compile.missing()
    if missing is not None:
        pytest.skip(missing)
    (found,) = triton_compile.compile_all([kernel], 1)
    assert not isinstance(found, str), found
    assert (found.assembly.spills, found.stack) == (0, 0)
    assert found.assembly.barriers > 0
