"""Single steps and streaming calls of cells that are not built in, and the plans around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastrnn
from fastrnn.backends import module as backend_module
from fastrnn.backends import numba
from fastrnn.binding.bind import bind, results
from fastrnn.binding.configuration import Configuration
from fastrnn.binding.launches import Launches
from fastrnn.binding.training_step import TrainingStep
from tests.backends.test_numba_other_cells import CELLS, OFTEN, names
from tests.layers.plain_loops import as_hx
from tests.plans import plans_of
from tests.torch_parity import assert_close

pytestmark = pytest.mark.skipif(bool(backend_module("numba").ready()), reason="no Numba")
often = pytest.mark.parametrize("name", OFTEN)
INPUT, HIDDEN, BATCH, STEPS = 5, 19, 3, 4


class Case:
    """A cell with weights, and arguments of some steps or of a layer."""

    def __init__(self, name: str, *, layers: int = 1, bias: bool = True, batch: Sequence[int] = (BATCH,)) -> None:
        self.cell, cell = CELLS[name], CELLS[name]
        of_x, of_u = len(cell.x_gates) * HIDDEN, len(cell.u_gates) * HIDDEN
        self.weights = [
            [
                *(uniform(of_x, INPUT if index == 0 else HIDDEN), uniform(of_u, HIDDEN)),
                *((uniform(of_x), uniform(of_u)) if bias else ()),
                *(uniform(HIDDEN) for _ in cell.parameters),
            ]
            for index in range(layers)
        ]
        self.x = uniform(STEPS, *batch, INPUT)
        self.states = [uniform(*batch, HIDDEN, low=0.5, high=1) for _ in cell.states]
        self.inputs = [uniform(STEPS, *batch, HIDDEN, low=0) for _ in cell.inputs]

    def configuration(self, backend: str, **options: Any) -> Configuration:
        return Configuration("Other", self.cell.key, backend=backend, **options)

    def tensors(self) -> list[Tensor]:
        return [self.x, *self.states, *(w for group in self.weights for w in group), *self.inputs]

    def step(self, backend: str, t: int, states: Any) -> tuple[Tensor, ...]:
        configuration = self.configuration(backend, is_cell=True)
        values = [value[t] for value in self.inputs]
        found = results(configuration, self.weights, self.x[t], states, None, None, False, None, values)
        return found[1]  # type: ignore[no-any-return]

    def loop(self, backend: str, steps: int = STEPS) -> tuple[Tensor, ...]:
        states: tuple[Tensor, ...] = tuple(self.states)
        for t in range(steps):
            states = self.step(backend, t, states)
        return states

    def by_autograd(self) -> tuple[Tensor, ...]:
        """The loop by the cell's own step."""
        cell, (weights,) = self.cell, self.weights
        first = len(weights) - len(cell.parameters)
        w_ih, w_hh, *biases = weights[:first]
        b_ih, b_hh = biases or (None, None)
        states: tuple[Tensor, ...] = tuple(self.states)
        for t, x in enumerate(self.x):
            gx = F.linear(x, w_ih, b_ih).unflatten(-1, (-1, HIDDEN))
            gh = F.linear(states[0], w_hh, b_hh).unflatten(-1, (len(cell.u_gates), HIDDEN)) if cell.u_gates else x
            states = cell.step(gx, gh, states, weights[first:], [value[t] for value in self.inputs])[0]
        return states

    def gradients(self, states: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, ...]:
        loss = sum(state.sin().sum() * (k + 1) for k, state in enumerate(states))
        return torch.autograd.grad(loss, self.tensors(), materialize_grads=True, **options)  # type: ignore[arg-type]


def uniform(*sizes: int, low: float = -0.5, high: float = 0.5) -> Tensor:
    return torch.empty(sizes, dtype=torch.float64).uniform_(low, high).requires_grad_()


@names
@pytest.mark.parametrize("options", [{}, {"bias": False, "batch": ()}], ids=["batched", "plain"])
def test_a_loop_of_steps_that_is_trained(name: str, options: dict[str, Any]) -> None:
    case = Case(name, **options)
    got, expected = case.loop("numba"), case.by_autograd()
    assert_close(got, expected, 1e-12)
    assert_close(case.gradients(got), case.gradients(expected), 1e-11)


@often
def test_second_derivatives(name: str) -> None:
    case = Case(name)
    found = [case.gradients(states, create_graph=True) for states in (case.loop("numba", 2), case.loop("reference", 2))]
    twice = [
        torch.autograd.grad(sum(d.square().sum() for d in first), case.tensors(), materialize_grads=True)  # type: ignore[arg-type]
        for first in found
    ]
    assert_close(twice[0], twice[1], 1e-10)


@often
def test_only_some_gradients_are_asked_for(name: str) -> None:
    case = Case(name)
    frozen = [case.weights[0][0], *case.weights[0][-1:], *case.inputs[:1]]
    for tensor in frozen:
        tensor.requires_grad_(False)
    wanted = [tensor for tensor in case.tensors() if tensor.requires_grad]
    found = [
        torch.autograd.grad(states[0].sum(), wanted, materialize_grads=True)
        for states in (case.loop("numba"), case.by_autograd())
    ]
    assert_close(found[0], found[1], 1e-11)


def test_a_hook_that_changes_an_inputs_gradient_changes_no_other() -> None:
    case = Case("everything")
    expected = case.gradients(case.by_autograd())
    states = case.loop("numba")
    found = torch.autograd.grad(states[0].sum(), case.inputs, retain_graph=True)
    for d in found:
        d.zero_()
    assert_close(case.gradients(states), expected, 1e-11)


@names
@pytest.mark.parametrize("batch", [(BATCH,), ()], ids=["batched", "unbatched"])
def test_streaming_calls(name: str, batch: Sequence[int]) -> None:
    """Of two layers, by a plan that is run again, with states and without."""
    case = Case(name, layers=2, batch=batch)
    hx: Any = tuple(torch.stack([state, state + 0.25]) for state in case.states)
    inputs = [torch.stack([value, 1 - value]) for value in case.inputs]
    with torch.no_grad():
        for given in (None, hx) if name != "slstm" else (hx,):
            hx_of = given[0] if given and len(given) == 1 else given
            arguments = (case.weights, case.x, hx_of, None, None, False, None, inputs)
            expected = results(case.configuration("reference"), *arguments)
            plan, stack = bind(case.configuration("numba"), *arguments)
            assert type(plan) is Launches
            for got in (plan.results(stack), plan.run(case.x, given, None, None, inputs)):
                assert got is not None
                assert_close([got[0], *got[1]], [expected[0], *expected[1]], 1e-12)


@names
def test_calls_whose_weights_are_laid_out(name: str) -> None:
    """In two directions, with lengths, by a plan that is run again, before and after a parameter changes."""
    case = Case(name, batch=(2,))
    weights = [case.weights[0], Case(name).weights[0]]
    hx: Any = tuple(torch.stack([state, state + 0.25]) for state in case.states)
    inputs = [torch.stack([value, 1 - value]) for value in case.inputs]
    arguments = (weights, case.x, hx if len(hx) > 1 else hx[0], torch.tensor([2, STEPS]), None, False, None, inputs)
    with torch.no_grad():
        plan, stack = bind(case.configuration("numba", bidirectional=True), *arguments)
        assert type(plan) is Launches
        plan.results(stack)
        weights[1][-1].mul_(0.5)
        expected = results(case.configuration("reference", bidirectional=True), *arguments)
        got = plan.run(case.x, hx, arguments[3], None, inputs)
        assert got is not None
        assert_close([got[0], *got[1]], [expected[0], *expected[1]], 1e-12)


@often
def test_a_cells_step_without_gradients(name: str) -> None:
    case = Case(name)
    with torch.no_grad():
        assert_close(case.loop("numba"), case.by_autograd(), 1e-12)


def test_teams_do_not_meet_where_the_state_is_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("indrnn")
    with torch.no_grad():
        hx, arguments = case.states[0][None], (None, None, False, None, ())
        alone = results(case.configuration("numba"), case.weights, case.x, hx, *arguments)
        monkeypatch.setattr(numba.unpacked, "TEAM_PRODUCTS", 0)
        monkeypatch.setattr(numba.launch, "available_threads", lambda: 2)
        numba.unpacked.schedule.cache_clear()
        together = results(case.configuration("numba"), case.weights, case.x, hx, *arguments)
        numba.unpacked.schedule.cache_clear()
    assert torch.equal(alone[0], together[0])


def module_of(case: Case) -> fastrnn.RecurrentCell:
    """A module with the case's weights."""
    module = fastrnn.RecurrentCell(case.cell, INPUT, HIDDEN, dtype=torch.float64, backend="numba")
    own = [tensor for tensor in case.weights[0] if tensor.numel() > 0]
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), own, strict=True):
            parameter.copy_(value)
    return module


@pytest.fixture(params=[False, True], ids=["inference", "training"])
def with_gradients(request: pytest.FixtureRequest) -> Iterator[bool]:
    with torch.set_grad_enabled(request.param):
        yield request.param


def test_plans_are_kept_of_calls_with_inputs(with_gradients: bool) -> None:
    case = Case("everything")
    module, x, states = module_of(case), case.x[0].detach(), tuple(state.detach() for state in case.states)
    k, m = (value[0].detach() for value in case.inputs)
    for scale in (1, 0.5, 0.25):
        given = [k * scale, m * scale]
        expected = results(
            case.configuration("reference", is_cell=True), case.weights, x, states, None, None, False, None, given
        )
        assert_close(module(x, states, k=given[0], m=given[1]), expected[1], 1e-12)
    kept = plans_of(module)
    assert [type(plan) for plan in kept] == [TrainingStep if with_gradients else Launches]
    of_one = module(x, states, k=k[:1], m=m)  # of another form, which is checked
    assert_close(of_one, module(x, states, k=k[:1].expand(BATCH, -1), m=m), 1e-12)
    with pytest.raises(ValueError, match="k must be broadcastable"):
        module(x, states, k=k[:2], m=m)
    if with_gradients:
        wanted = m.clone().requires_grad_()
        module.requires_grad_(False)
        for _ in range(3):
            (d,) = torch.autograd.grad(module(x, states, k=k, m=wanted)[0].sum(), wanted)
        assert d.abs().sum() > 0


@often
def test_what_was_freed_is_told(name: str, with_gradients: bool) -> None:
    case = Case(name)
    of_weights = len([*module_of(case).parameters()])
    for place in range(1 + len(case.states) + of_weights + len(case.inputs)):
        module = module_of(case)
        x, *states = (value.detach().clone() for value in (case.x[0], *case.states))
        inputs = {key: value[0].detach().clone() for key, value in zip(case.cell.inputs, case.inputs, strict=True)}
        given = [x, *states, *module.parameters(), *inputs.values()]
        for _ in range(2):
            module(x, as_hx(tuple(states)), **inputs)
        given[place].untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="data is not allocated"):
            module(x, as_hx(tuple(states)), **inputs)


def test_memory_that_is_freed_before_backward_is_an_error() -> None:
    for freed in ("parameter", "input"):
        case = Case("indrnn" if freed == "parameter" else "everything")
        states = case.loop("numba")
        tensor = case.weights[0][-1] if freed == "parameter" else case.inputs[0]
        tensor.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="data is not allocated"):
            states[0].sum().backward()
