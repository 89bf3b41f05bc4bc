"""Heads in Numba's kernels: values and all gradients against the float64 reference, and plans against dense weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", exc_type=ImportError)

from fastrnn.backends import reference
from fastrnn.backends.layer import Layer
from fastrnn.backends.numba import forward_schedule, launch, sharing, unpacked
from fastrnn.backends.numba.extents import extents
from fastrnn.binding.bind import bind, results
from fastrnn.binding.configuration import Configuration
from fastrnn.binding.launches import Launches
from fastrnn.cells import CELLS as BUILT_IN
from fastrnn.cells import Cell
from tests.backends.test_numba_other_cells import CELLS, assert_right
from tests.random_layers import Shape, any_layer, cast, random_layer
from tests.selection import exhaustive
from tests.torch_parity import assert_close

pytestmark = pytest.mark.usefixtures("poisoned_memory")

ALL: dict[str, Cell] = {**BUILT_IN, **CELLS}
often = pytest.mark.parametrize("name", ["lstm", "everything"])
names = pytest.mark.parametrize("name", ["lstm", "rnn_tanh", "everything", *exhaustive("gru", "wide")])
"""One gate, whose panels hold several vectors, and many; blocks of gradients in another order than gates."""
MASKED = Shape(steps=7, batch=9, hidden=72, heads=4, directions=2, lengths=True, resets=True)
SHAPES = (
    Shape(hidden=12, heads=4),
    Shape(steps=1, batch=2, hidden=12, heads=12, bias=False),
    Shape(steps=4, batch=13, hidden=40, heads=4, directions=2),
    Shape(steps=150, batch=1, hidden=40, heads=40, reverse=True),
    Shape(steps=6, batch=7, hidden=72, heads=4, lengths=True, reverse=True),
    Shape(steps=1, batch=1, hidden=72, heads=72, contiguous=False),
    Shape(steps=3, batch=5, hidden=128, heads=2),
    Shape(steps=3, batch=5, hidden=130, heads=2, resets=True, reverse=True),
    MASKED,
)
"""Heads of less than a vector, of a vector and a bit, of panels and parts of them."""


@names
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(name: str, shape: Shape) -> None:
    assert_right(any_layer(ALL[name], shape), torch.float64)


@often
def test_gates_that_are_computed_again(name: str) -> None:
    assert_right(any_layer(ALL[name], MASKED), torch.float64, recompute=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_dtypes(shape: Shape, dtype: torch.dtype) -> None:
    assert_right(any_layer(ALL["lstm"], shape), dtype)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not launch.can_share():
        pytest.skip("needs an OpenMP runtime")
    monkeypatch.setattr(sharing, "is_welcome", lambda pace: True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@often
@pytest.mark.parametrize("dropped", [False, True], ids=["", "dropped"])
def test_threads_that_share_the_units(name: str, dropped: bool, two_threads: None) -> None:
    shape = Shape(steps=20, batch=2, inputs=3, hidden=360, heads=3, lengths=True, resets=True, dropped=dropped)
    layer = any_layer(ALL[name], shape)
    assert of_schedule(ALL[name], layer).team == 2
    assert_right(layer, torch.float64)


def of_schedule(cell: Cell, layer: Layer) -> Any:
    """The first direction's sizes of a forward that two threads may share."""
    sizes = tuple(layer.x.shape), layer.hidden_size, layer.hidden_size, layer.heads
    return forward_schedule.schedule(cell.key, torch.float64, *sizes, 1, False, False, 2).launches[-1][1][0]


def test_threads_share_units_where_what_is_left_of_the_product_is_worth_it() -> None:
    for heads, team in ((1, 2), (2, 2), (16, 1)):
        layer = random_layer("lstm", Shape(steps=100, batch=1, inputs=8, hidden=256, heads=heads))
        assert of_schedule(BUILT_IN["lstm"], layer).team == team
        assert of_schedule(BUILT_IN["lstm"], layer).depth == 256 // heads


def test_panels_are_as_deep_as_their_own_heads() -> None:
    assert [*extents(64, 16, 4, 16).table] == [0, 16, 16, 16, 32, 16, 48, 16]
    assert [*extents(36, 12, 3, 16).table] == [0, 24, 12, 24, 24, 12]
    assert [*extents(20, 3, 20, 16).table] == [0, 48, 48, 12]
    assert extents(160, 40, 4, 64).depth == 120


@often
@pytest.mark.parametrize("sizes", [(40, 4), (72, 3), (16, 2)], ids=str)
def test_few_steps(name: str, sizes: tuple[int, int], two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, heads = sizes
    layer = any_layer(ALL[name], Shape(steps=3, batch=9, hidden=hidden, heads=heads, reverse=True))
    truth = reference.forward(layer, history=False, gates=False)
    alone = unpacked.forward(layer)
    assert_close([*alone.states, *alone.finals], [*truth.states, *truth.finals], 1e-13)
    monkeypatch.setattr(unpacked, "TEAM_PRODUCTS", 0)
    unpacked.schedule.cache_clear()
    together = unpacked.forward(layer)
    unpacked.schedule.cache_clear()
    for got, want in zip(together.states + together.finals, alone.states + alone.finals, strict=True):
        assert torch.equal(got, want)


def test_narrow_heads_are_packed() -> None:
    for heads, served in ((1, True), (5, True), (8, False)):
        layer = random_layer("lstm", Shape(steps=1, batch=1, hidden=40, heads=heads))
        assert unpacked.serves(layer) is served
        layer = cast(layer, torch.float32)
        assert unpacked.serves(layer) is (heads == 1)


HIDDEN, HEADS = 40, 4


def dense(w_hh: Tensor, gates: int) -> Tensor:
    """The weights (Gu·H, H) of one head that does what (N, Gu·D, D) do."""
    of_gates = w_hh.unflatten(1, (gates, -1)).unbind(1)
    return torch.cat([torch.block_diag(*gate) for gate in of_gates])


class Case:
    """A module's weights, and what it is called with."""

    def __init__(self, name: str, heads: int = HEADS, layers: int = 1) -> None:
        self.cell, cell = ALL[name], ALL[name]
        layer = any_layer(cell, Shape(steps=3, batch=2, inputs=HIDDEN, hidden=HIDDEN, heads=heads))
        self.weights = [
            [layer.w_ih[0] * k, layer.w_hh[0] * k, *layer.biases, *layer.parameters] for k in range(1, layers + 1)
        ]
        self.x, self.states, self.inputs = layer.x, [state[0] for state in layer.states0], layer.inputs
        for tensor in self.tensors():
            tensor.requires_grad_()

    def tensors(self) -> list[Tensor]:
        return [self.x, *self.states, *self.weights[0], *self.inputs]

    def dense(self) -> list[list[Tensor]]:
        return [[w[0], dense(w[1], len(self.cell.u_gates)), *w[2:]] for w in self.weights]

    def loop(self, backend: str, weights: list[list[Tensor]]) -> tuple[Tensor, ...]:
        """Single steps."""
        configuration = Configuration("Other", self.cell.key, backend=backend, is_cell=True)
        states: Any = tuple(self.states)
        for t, x in enumerate(self.x):
            values = [value[0, t] for value in self.inputs]
            states = results(configuration, weights, x, states, None, None, False, None, values)[1]
        return states  # type: ignore[no-any-return]

    def gradients(self, states: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, ...]:
        loss = sum(state.sin().sum() * (k + 1) for k, state in enumerate(states))
        return torch.autograd.grad(loss, self.tensors(), **options)  # type: ignore[arg-type]


@often
@pytest.mark.parametrize("heads", [1, HEADS])
def test_steps_that_are_trained(name: str, heads: int) -> None:
    case = Case(name, heads)
    got, expected = case.loop("numba", case.weights), case.loop("reference", case.dense())
    assert_close(got, expected, 1e-12)
    assert_close(case.gradients(got, retain_graph=True), case.gradients(expected, retain_graph=True), 1e-11)
    twice = [
        torch.autograd.grad(sum(d.square().sum() for d in case.gradients(states, create_graph=True)), case.tensors())  # type: ignore[arg-type]
        for states in (got, expected)
    ]
    assert_close(*twice, 1e-10)


@often
@pytest.mark.parametrize("heads", [HEADS, HIDDEN])
def test_calls_without_gradients(name: str, heads: int) -> None:
    """Of two layers, by a plan that is run again: with weights as they lie or laid out, anew or once."""
    case = Case(name, heads, layers=2)
    hx: Any = tuple(torch.stack([state, state]).detach() for state in case.states)
    inputs = [value.expand(2, -1, -1, -1).contiguous() for value in case.inputs]
    for steps in (1, 3):
        arguments = (case.x[:steps].detach(), hx, None, None, False, None, [value[:, :steps] for value in inputs])
        with torch.no_grad():
            expected = results(Configuration("Other", case.cell.key, backend="reference"), case.dense(), *arguments)
            for prepacked in (False, True):
                configuration = Configuration("Other", case.cell.key, backend="numba", prepacked=prepacked)
                plan, stack = bind(configuration, case.weights, *arguments)
                assert type(plan) is Launches
                found = [plan.results(stack)]
                if prepacked:
                    plan.keep_weights()
                found.append(plan.run(arguments[0], hx, None, None, arguments[-1]))
                for got in found:
                    assert_close([got[0], *got[1]], [expected[0], *expected[1]], 1e-12)
