"""Cells that are not built in and have a product, by the kernels of both ways, beside the reference.

Their gates, states, parameters and inputs are such as no built-in cell has.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from benchmarks import triton_compile
from benchmarks.triton_compile import MASKED, MASKED_LEAN, Kernel
from fastrnn import backends
from fastrnn.backends import products, reference
from fastrnn.backends import triton as backend_module
from fastrnn.backends.layer import Backward, Gradients, Layer, Residuals
from fastrnn.backends.triton import configurations, ways
from fastrnn.cells import CELLS, Cell, Step, library, mix, sigmoid, tanh, where
from fastrnn.cells.known import known, of_text
from tests.backends import test_triton_ways
from tests.cells.zoo import ZOO, seven
from tests.random_layers import Shape, any_layer
from tests.selection import exhaustive

reason = backend_module.ready()
pytestmark = pytest.mark.usefixtures("poisoned_memory")
needs_a_device = pytest.mark.skipif(reason is not None, reason=f"triton: {reason}")
on_triton = pytest.mark.parametrize("backend", ["triton"])  # names the backend, and with it the device


@fastrnn.cell(gates="nlf")
def backwards(x: Any, u: Any, h: Any) -> Any:
    """The minimal gated unit and a leap: u's gates are no run of blocks, and blocks are more than saved values."""
    f = sigmoid(x.f + u.f)
    return mix(f, tanh(x.n + f * u.n), h) + x.l


@fastrnn.cell
def parted(x: Any, u: Any, h: Any, c: Any, *, p: Any, inside: Step) -> Any:
    """No gate has both shares, and states become a parameter or an input as they are."""
    return tanh(x.a + p * c) * u.b, where(h < 0.0, p, inside)


@fastrnn.cell
def dividing_product(x: Any, u: Any, h: Any) -> Any:
    """All is NaN where x, u and h are zero, as in units that there are not and that products sum over."""
    return (x.a + u.a) / (x.b + u.b) + u.c / x.c + h / x.a


OWN = (backwards, parted, dividing_product)
ALL = {cell.name: cell for cell in (*ZOO.values(), known(library.zoneout_gru), seven, *map(known, OWN)) if cell.u_gates}
EVERYTHING = Shape(steps=5, batch=4, hidden=5, directions=2, lengths=True, resets=True)
SHAPES = (
    EVERYTHING,
    Shape(steps=3, heads=2, directions=2),
    Shape(steps=3, bias=False, reverse=True),
    Shape(steps=3, batch=18, hidden=19, directions=2, lengths=True),
)
RECOMPUTED = ("peephole_lstm", "star", "slstm", "scaled_residual", "parted", "seven")
"""From no saved values in the short run."""
STEP_BY_STEP = ("slstm", "parted", "dividing_product")
"""Also that way in the short run; the exhaustive one has all."""


def assert_exact(layer: Layer, kept: bool) -> None:
    """In float64 all results, from gradients of every state of every step and of the last."""
    assert backend_module.supports(layer) is None
    truth = reference.forward(layer, history=True, gates=True)
    result = backend_module.forward(layer, history=True, gates=kept)
    assert len(result.saved) == (kept and len(layer.cell.saved) > 0)
    assert all(tensor.isfinite().all() for group in result for tensor in group)
    live = products.live_steps(layer)

    def of_live(histories: list[Tensor]) -> list[Tensor]:
        return histories if live is None else [torch.where(live[..., None], history, 0) for history in histories]

    torch.testing.assert_close(result.states[0], truth.states[0])
    torch.testing.assert_close(of_live(result.states), of_live(truth.states))
    torch.testing.assert_close(result.finals, truth.finals)

    grads = Gradients(*([torch.randn_like(y) for y in group] for group in (truth.states, truth.finals)))
    expected = reference.backward(layer, Residuals(truth.states, truth.saved), grads)
    found = backend_module.backward(layer, Residuals(result.states, result.saved), grads)
    for name, got, want in zip(Backward._fields, found, expected, strict=True):
        torch.testing.assert_close([*got], [*want], msg=lambda text, name=name: f"d {name}: {text}")


def _in_short_run(name: str, shape: Shape, kept: bool, steps: bool) -> bool:
    by_table = not steps or name in STEP_BY_STEP
    return shape is EVERYTHING and kept != (name in RECOMPUTED) and by_table


@needs_a_device
@on_triton
@pytest.mark.parametrize(
    ("name", "shape", "kept", "steps"),
    [
        pytest.param(
            name,
            shape,
            kept,
            steps,
            id=f"{name}-{shape}-{'kept' if kept else 'recomputed'}-{'steps' if steps else 'persistent'}",
            marks=() if _in_short_run(name, shape, kept, steps) else pytest.mark.exhaustive,
        )
        for name in ALL
        for shape in SHAPES
        for kept in (True, False)
        for steps in (False, True)
    ],
)
def test_a_layer(
    name: str, shape: Shape, kept: bool, steps: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From what forward kept, and from recomputed pre-activations and saved values. On a GPU persistent kernels have no
    float64, and are judged in bfloat16."""
    layer = any_layer(ALL[name], shape)
    if steps:
        test_triton_ways.force(monkeypatch, None)
    elif configurations.INTERPRETED:
        assert configurations.forward_tile(layer) is not None
    elif name != "dividing_product":  # which in fewer bits is beyond any tolerance
        test_triton_ways.assert_as_reference(layer, torch.bfloat16, recompute=not kept)
        return
    assert_exact(layer, kept)


@needs_a_device
@on_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, *exhaustive(torch.float16, torch.float32)], ids=str)
@pytest.mark.parametrize(
    "name",
    ["zoneout_lstm", *exhaustive(*(name for name in library.__all__ if name in ALL and name != "zoneout_lstm"))],
)
def test_a_layer_in_storage_dtypes(name: str, dtype: torch.dtype, backend: str) -> None:
    """As the built-in cells are judged."""
    for recompute in (False, True):
        test_triton_ways.assert_as_reference(any_layer(ALL[name], EVERYTHING), dtype, recompute)


@needs_a_device
@on_triton
def test_a_kernel_that_is_too_large_is_not_launched(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The per-step kernels take its place, which is said once. Of built-in cells the table knows."""
    said = test_triton_ways.refuse_large(monkeypatch)
    for _ in range(2):
        test_triton_ways.assert_as_reference(any_layer(ALL["mgu"], Shape(steps=2)))
    of_cell, _, why = said[0].partition(": ")
    assert of_cell == "mgu, 6 units, forward"
    assert why.startswith("a launch for each step")
    assert why.endswith("planted")
    assert len(said) == 2, "and backward"
    monkeypatch.setattr(ways, "steps", None)
    test_triton_ways.assert_as_reference(any_layer(CELLS["gru"], Shape(steps=2)))


@needs_a_device
@on_triton
def test_cells_of_one_name(backend: str) -> None:
    """In one process, one of them read from text as another process would read it."""

    def scaled(factor: float) -> Cell:
        @fastrnn.cell
        def twice(x: Any, u: Any, h: Any) -> Any:
            return tanh(x.a + factor * u.a)

        return twice

    text = scaled(3.0).program.text
    cells = [known(scaled(2.0)), of_text(text)]
    assert cells[0].name == cells[1].name
    for cell in cells:
        assert_exact(any_layer(cell, Shape(steps=3)), kept=True)


@needs_a_device
@on_triton
def test_a_cell_named_like_a_built_in_one(backend: str) -> None:
    """It has kernels of its own, and no tile of the table."""

    @fastrnn.cell
    def lstm(x: Any, u: Any, h: Any, c: Any) -> Any:
        return mix(sigmoid(x.a + u.a), h, c), h

    assert_exact(any_layer(known(lstm), Shape(steps=3)), kept=True)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("slstm", "parted"), id="some"),
        pytest.param(("star", "scaled_residual", "zoneout_lstm"), id="more", marks=pytest.mark.exhaustive),
    ],
)
def test_kernels_compile_for_a_gpu_that_need_not_be_there(names: tuple[str, ...]) -> None:
    """With every argument that a kernel may have, in a process that is told the cell as text."""
    missing = triton_compile.missing()
    if missing is not None:
        pytest.skip(missing)
    kernels = [
        Kernel(direction, name, "16 bit", "bfloat16", 64, None, variant, 90, program=ALL[name].program.text)
        for name in names
        for direction, variant in (("forward", MASKED), ("backward", MASKED_LEAN))
    ]
    for kernel, found in zip(kernels, triton_compile.compile_all(kernels, 1), strict=True):
        assert not isinstance(found, str), f"{kernel}: {found}"
        assert (found.assembly.spills, found.stack) == (0, 0), kernel
        assert found.assembly.barriers == 1, "threads wait for each other once, before what is stored"


@pytest.mark.parametrize("name", ALL)
def test_auto_takes_it_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device's tensors are no CPU's: `auto` asks the backends for GPUs."""
    layer = any_layer(ALL[name], Shape(steps=3)).with_tensors(lambda tensor: tensor.to("meta"))
    assert backends.module("cuda").supports(layer) == "it takes CUDA tensors only, got meta"
    assert backend_module.supports(layer) == "it takes CUDA tensors only, got meta"
    for operation in ("forward", "backward"):
        assert backends.operator_backend("auto", layer, operation) == "reference"
    monkeypatch.setattr(backend_module, "supports", lambda layer: None)
    for operation in ("forward", "backward"):
        assert backends.operator_backend("auto", layer, operation) == "triton"
