"""Numba's kernels for cells that look at means over units: values and all gradients against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("numba", exc_type=ImportError)

import fastrnn
from fastrnn.backends.numba import launch, sharing, split
from fastrnn.cells import Cell, Step, layer_norm, mean, mix, rms_norm, sigmoid, tanh
from fastrnn.cells.known import known
from tests.backends.test_numba_other_cells import assert_right, computed, cotangents
from tests.random_layers import AWKWARD, Shape, any_layer
from tests.selection import exhaustive

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@fastrnn.cell
def nested(x: Any, u: Any, h: Any, c: Any, n: Any, *, gain: Any, shift: Any, k: Step) -> Any:
    """A mean of what was made of another, in each state; tables of states, a parameter's block, an input of a step."""
    z = sigmoid(layer_norm(x.z + u.z, gain, shift))
    c = mix(z, tanh(x.a + rms_norm(c) * u.a), c)
    n = n * mean(z) + k * c
    return tanh(rms_norm(n, gain) - h * mean(h * c)), c, n


@fastrnn.cell
def alone(x: Any, u: Any, h: Any) -> Any:
    """Without a product of the state: what units need of each other is a mean alone."""
    f = sigmoid(x.f)
    return layer_norm(mix(f, x.n, h)) + mean(f)


@fastrnn.cell(gates="ifgo")
def layer_norm_lstm(
    x: Any, u: Any, h: Any, c: Any, *, gi: Any, gf: Any, gg: Any, go: Any, bi: Any, bf: Any, bg: Any, bo: Any, gc: Any
) -> Any:
    """Two norms of four gates each, and one of a state."""
    xi, xf, xg, xo = layer_norm((x.i, x.f, x.g, x.o), (gi, gf, gg, go), (bi, bf, bg, bo))
    ui, uf, ug, uo = layer_norm((u.i, u.f, u.g, u.o))
    c = sigmoid(xf + uf) * c + sigmoid(xi + ui) * tanh(xg + ug)
    return sigmoid(xo + uo) * tanh(layer_norm(c, gc)), c


CELLS: dict[str, Cell] = {cell.name: known(cell) for cell in (nested, alone, layer_norm_lstm)}
names = pytest.mark.parametrize("name", ["nested", "alone", *exhaustive("layer_norm_lstm")])
MASKED = AWKWARD[14]


@names
@pytest.mark.parametrize("shape", AWKWARD, ids=str)
def test_values_and_gradients(name: str, shape: Shape) -> None:
    assert_right(any_layer(CELLS[name], shape), torch.float64)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", AWKWARD[4:], ids=str)
def test_other_dtypes(shape: Shape, dtype: torch.dtype) -> None:
    assert_right(any_layer(CELLS["nested"], shape), dtype)


@names
def test_gates_that_are_computed_again(name: str) -> None:
    assert_right(any_layer(CELLS[name], MASKED), torch.float64, recompute=True)


@pytest.mark.parametrize("heads", [2, 5])
def test_means_are_of_all_heads(heads: int) -> None:
    shape = Shape(steps=5, batch=3, hidden=20, heads=heads, lengths=True, directions=2)
    assert_right(any_layer(CELLS["nested"], shape), torch.float64)


@names
def test_threads_share_rows_and_never_units(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are the same, to the bit, whoever has which rows."""
    monkeypatch.setattr(sharing, "is_welcome", lambda pace: True)
    monkeypatch.setattr(split, "WORK_PER_THREAD", 1)
    monkeypatch.setattr(split, "TEAM_PRODUCTS", 1)
    layer, before, found = any_layer(CELLS[name], Shape(12, 3, 5, 90, resets=True)), torch.get_num_threads(), []
    grads = cotangents(layer)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert launch.available_threads() == threads
            found.append(computed(layer, torch.float64, "numba", grads))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, other[what]) for what, one in found[0].items())


@names
@pytest.mark.parametrize("shape", [Shape(1, 1, 3, 17), Shape(2, 3, 4, 33)], ids=str)
def test_few_rows(name: str, shape: Shape) -> None:
    """Without gradients, where other cells' weights are read as torch keeps them; also after `prepack`."""
    cell, (steps, batch, inputs, hidden) = CELLS[name], (shape.steps, shape.batch, shape.inputs, shape.hidden)
    layer = fastrnn.Recurrent(cell, inputs, hidden, dtype=torch.float64)
    x, own = torch.randn(steps, batch, inputs).double(), {}
    if cell.inputs:
        own = {"k": torch.rand(steps, batch, hidden).double()}
    with torch.no_grad():
        with fastrnn.use_backend("reference"):
            truth, last = layer(x, **own)
        for _ in range(2):
            with fastrnn.use_backend("numba"):
                got, states = layer(x, **own)
            torch.testing.assert_close((got, states), (truth, last), rtol=1e-12, atol=1e-12)
            layer.prepack()


@pytest.mark.parametrize("name", ["nested", *exhaustive("alone", "layer_norm_lstm")])
def test_steps(name: str) -> None:
    """A loop of single steps, with gradients and without."""
    cell = CELLS[name]
    step = fastrnn.RecurrentCell(cell, 3, 17, dtype=torch.float64)
    x = torch.randn(4, 2, 3).double().requires_grad_()
    own = [{name: torch.rand(2, 17).double() for name in cell.inputs} for _ in x]

    def trained(backend: str) -> list[torch.Tensor]:
        states, outputs = None, []
        with fastrnn.use_backend(backend):
            for one, values in zip(x, own, strict=True):
                states = step(one, states, **values)
                outputs += [states] if isinstance(states, torch.Tensor) else [*states]
            if not torch.is_grad_enabled():
                return outputs
            weighted = sum((output * (k + 1)).sin().sum() for k, output in enumerate(outputs))
            return [*outputs, *torch.autograd.grad(weighted, [x, *step.parameters()])]

    torch.testing.assert_close(trained("numba"), trained("reference"), rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(trained("numba"), trained("reference"), rtol=1e-12, atol=1e-12)
