"""Numba's kernels for layers of cells that are not built in: values and all gradients against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", exc_type=ImportError)

import fastrnn
from fastrnn import backends
from fastrnn.backends import gate_gradients
from fastrnn.backends.layer import Gradients, Layer, Residuals
from fastrnn.backends.numba import launch, sharing, split
from fastrnn.cells import Cell, Step, mix, sigmoid, tanh
from fastrnn.cells.known import known
from tests.cells.zoo import ZOO
from tests.random_layers import AWKWARD, Shape, any_layer
from tests.selection import exhaustive
from tests.tolerances import assert_accurate

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@fastrnn.cell(gates="rbza")
def everything(x: Any, u: Any, h: Any, c: Any, n: Any, *, p: Any, q: Any, k: Step, m: Step) -> Any:
    """Gates of each kind, in another order than their blocks, and several of all else that a cell may have."""
    z = sigmoid(x.z + p * h)
    c_new = z * c + k * tanh(x.a + u.a + q * n)
    n_new = mix(sigmoid(x.b + u.b), n, m * c)
    return tanh(z * h + q * tanh(u.r * c_new) + h * n_new), c_new, n_new


@fastrnn.cell
def wide(x: Any, u: Any, h: Any) -> Any:
    """More gates than registers hold sums of several rows."""
    a, b = tanh(x.a + u.a), tanh(x.b + u.b) * tanh(x.c + u.c)
    d, e = tanh(x.d + u.d) * tanh(x.e + u.e), tanh(x.f + u.f) * tanh(x.g + u.g)
    return a + b + d + e + tanh(x.i + u.i) * tanh(x.j + u.j) * tanh(x.k + u.k) + tanh(x.l + u.l) * tanh(x.m + u.m)


CELLS: dict[str, Cell] = {**ZOO, "everything": known(everything), "wide": known(wide)}
OFTEN = ("everything", "indrnn")
"""They have it all but two states, which the LSTM has: one state and three, no u gates and gates of all kinds,
parameters and inputs of the steps, derivatives that look at states before and after a step."""
names = pytest.mark.parametrize("name", [*OFTEN, *exhaustive("wide")])
"""The rest of the zoo differs from these in its expressions, which tests/cells compiles; the kernels of a cell take ten
seconds and more."""
MASKED = AWKWARD[14]


def layer_of(name: str, shape: Shape) -> Layer:
    return any_layer(CELLS[name], shape)


def cotangents(layer: Layer) -> tuple[list[Tensor], list[Tensor]]:
    """Of every state of every step, and of the last."""
    result = backends.module("reference").forward(layer, history=True, gates=False)
    return [torch.randn_like(s) for s in result.states], [torch.randn_like(s) for s in result.finals]


def computed(
    layer: Layer, dtype: torch.dtype, backend: str, grads: tuple[list[Tensor], list[Tensor]], recompute: bool = False
) -> dict[str, Tensor]:
    """The outputs, the other states of every step, and every gradient, by name; where a sequence is over, zero."""
    layer = layer.with_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t)
    run = backends.module(backend)
    result = run.forward(layer, history=True, gates=not recompute)
    d_states, d_finals = (
        [d.to(state) for d, state in zip(group, states, strict=True)]
        for group, states in zip(grads, result[:2], strict=True)
    )
    found = run.backward(layer, Residuals(result.states, result.saved), Gradients(d_states, d_finals))
    states = [*result.states]
    if layer.lengths is not None:
        live = torch.arange(layer.x.shape[0])[:, None] < layer.lengths
        states = [torch.where(live[..., None], state, 0) for state in states]
    named = {
        "states": states,
        "finals": result.finals,
        **{f"d {name}": group for name, group in found._asdict().items()},
    }
    return {f"{name}[{k}]": tensor for name, group in named.items() for k, tensor in enumerate(group)}


def assert_right(layer: Layer, dtype: torch.dtype, recompute: bool = False) -> None:
    layer = layer.with_tensors(lambda t: t.to(dtype).double() if t.is_floating_point() else t)
    grads = cotangents(layer)
    truth, own = (computed(layer, kind, "reference", grads, recompute) for kind in (torch.float64, dtype))
    got = computed(layer, dtype, "numba", grads, recompute)
    assert got.keys() == truth.keys()
    for what, result in got.items():
        assert_accurate(what, result, truth[what], own[what])


@names
@pytest.mark.parametrize("shape", AWKWARD, ids=str)
def test_values_and_gradients(name: str, shape: Shape) -> None:
    assert_right(layer_of(name, shape), torch.float64)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", AWKWARD, ids=str)
def test_other_dtypes(shape: Shape, dtype: torch.dtype) -> None:
    assert_right(layer_of("everything", shape), dtype)


@names
def test_gates_that_are_computed_again(name: str) -> None:
    assert_right(layer_of(name, MASKED), torch.float64, recompute=True)


@names
def test_threads_that_share_the_units(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of what each touches is its own: the states beside h as well."""
    monkeypatch.setattr(sharing, "is_welcome", lambda pace: True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert launch.can_share()
        for directions in (1, 2):
            assert_right(layer_of(name, Shape(40, 2, 3, 180, directions, lengths=True, resets=True)), torch.float64)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(steps=130, batch=1, inputs=60, hidden=170, resets=True),
        Shape(steps=130, batch=1, inputs=1, hidden=170, lengths=True, reverse=True),
        Shape(steps=40, batch=9, inputs=49, hidden=170, lengths=True, resets=True, reverse=True),
        Shape(steps=40, batch=9, inputs=1, hidden=170, lengths=True, resets=True),
        Shape(steps=2, batch=40, inputs=32, hidden=20),
        Shape(steps=2, batch=40, inputs=1, hidden=20),
    ],
    ids=str,
)
def test_input_gradients_without_a_product(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come of the recurrence's kernel, in chunks of steps, and are the same whoever shares rows or units."""
    monkeypatch.setattr(sharing, "is_welcome", lambda pace: True)
    monkeypatch.setattr(split, "WORK_PER_THREAD", 1)
    monkeypatch.delattr(gate_gradients, "input_gradient")
    layer, before, found = layer_of("indrnn", shape), torch.get_num_threads(), []
    assert_right(layer, torch.float64)
    grads = cotangents(layer)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(computed(layer, torch.float64, "numba", grads))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, other[what]) for what, one in found[0].items())


@names
def test_states_whose_gradients_nobody_has(name: str) -> None:
    layer = layer_of(name, Shape(directions=2))
    run = backends.module("numba")
    result = run.forward(layer, history=True, gates=True)
    kept = Residuals(result.states, result.saved)
    zeros = Gradients([torch.zeros_like(s) for s in result.states], [torch.zeros_like(f) for f in result.finals])
    zeros.finals[-1] = torch.randn_like(result.finals[-1])
    none = Gradients([None], [None] * (len(result.finals) - 1) + [zeros.finals[-1]])
    for some, all_ in zip(run.backward(layer, kept, none), run.backward(layer, kept, zeros), strict=True):
        for one, other in zip(some, all_, strict=True):
            assert torch.equal(one, other)


@names
def test_results_share_no_memory(name: str) -> None:
    result = backends.module("numba").forward(layer_of(name, Shape()), history=True, gates=True)
    tensors = [*result.states, *result.finals, *result.saved]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
