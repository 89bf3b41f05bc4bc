"""Cells that train on the CPU: loops of steps whose weights' gradients are one product, differentiated in many ways."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn.backends import module as backend_module
from fastrnn.binding import training_step
from fastrnn.binding.training_step import TrainingStep
from tests.plans import plans_of
from tests.torch_parity import assert_close

pytestmark = pytest.mark.skipif(bool(backend_module("numba").ready()), reason="no Numba")
KINDS = ("LSTMCell", "GRUCell", "RNNCell")
INPUT, HIDDEN, BATCH, STEPS = 5, 19, 3, 4
kinds = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    options = {"dtype": torch.float64, **options}
    ours, theirs = (getattr(library, kind)(INPUT, HIDDEN, **options) for library in (fastrnn, nn))
    ours.backend = "numba"
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def sequence(steps: int = STEPS, batch: tuple[int, ...] = (BATCH,)) -> Tensor:
    return torch.randn(steps, *batch, INPUT, dtype=torch.float64, requires_grad=True)


def h(state: Any) -> Tensor:
    return state[0] if isinstance(state, tuple) else state


def last_of(cell: nn.Module, x: Tensor, state: Any = None) -> Any:
    for one in x:
        state = cell(one, state)
    return state


def same(ways: Callable[[nn.Module, Tensor], Any], kind: str = "LSTMCell", **options: Any) -> None:
    """What a way of using a cell gives is what it gives with torch.nn's."""
    ours, theirs = pair(kind, **options)
    x = sequence()
    for _ in range(2):
        assert_close(ways(ours, x), ways(theirs, x), 1e-11)
    assert TrainingStep in map(type, plans_of(ours))


def everything(loss: Tensor, cell: nn.Module, x: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [x, *(p for p in cell.parameters() if p.requires_grad)], **options)


@pytest.mark.parametrize("batch", [(BATCH,), ()], ids=["batched", "unbatched"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dtype": torch.float32}], ids=str)
@kinds
def test_a_loop(kind: str, options: dict[str, Any], batch: tuple[int, ...]) -> None:
    ours, theirs = pair(kind, **options)
    x = sequence(batch=batch).to(ours.weight_ih.dtype).detach().requires_grad_()
    for _ in range(2):
        results = [everything(h(last_of(cell, x)).sin().sum(), cell, x) for cell in (ours, theirs)]
        assert_close(*results, 1e-11 if x.dtype == torch.float64 else 2e-5)
    assert type(plans_of(ours)[0]) is TrainingStep


@kinds
def test_relu_and_states_that_are_given(kind: str) -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        torch.manual_seed(1)
        given = [torch.randn(BATCH, 2 * HIDDEN, dtype=torch.float64)[:, ::2].requires_grad_() for _ in range(2)]
        state = tuple(given) if kind == "LSTMCell" else given[0]
        loss = h(last_of(cell, x, state)).square().sum()
        return torch.autograd.grad(loss, [x, *given[: 1 + (kind == "LSTMCell")], *cell.parameters()])

    same(way, kind, **({"nonlinearity": "relu"} if kind == "RNNCell" else {}))


def test_a_tree_of_steps() -> None:
    """Two branches from one state, and a step that takes h of one and c of the other."""

    def way(cell: nn.Module, x: Tensor) -> Any:
        root = cell(x[0], None)
        left, right = cell(x[1], root), cell(x[2], cell(x[1], root))
        joined = cell(x[3], (left[0], right[1]))
        return everything(joined[0].sin().sum() + right[0].sum(), cell, x)

    same(way)


def test_two_loops_that_meet() -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        one, other = last_of(cell, x[:2]), last_of(cell, x[2:])
        joined = cell(x[0], (one[0], other[1]))
        return everything(joined[1].sin().sum(), cell, x)

    same(way)


def test_every_step_has_a_loss_and_something_lies_between() -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        state, loss = None, torch.zeros((), dtype=x.dtype)
        for index, one in enumerate(x):
            state = cell(one, state)
            loss = loss + state[1].sin().sum() * index
            if index == 1:
                state = state[0] * 0.5, state[1]
        return everything(loss, cell, x)

    same(way)


def test_a_graph_is_gone_through_more_than_once() -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        middle = last_of(cell, x[:2])
        end = last_of(cell, x[2:], middle)
        first = everything(middle[0].sum(), cell, x, retain_graph=True)
        second = everything(end[0].sum(), cell, x, retain_graph=True)
        return *first, *second, *everything((end[1] * middle[0]).sum(), cell, x)

    same(way)


def test_only_some_gradients_are_asked_for() -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        states = [cell(x[0], None)]
        for one in x[1:]:
            states.append(cell(one, states[-1]))
        loss, found = states[-1][0].square().sum(), []
        for wanted in ([states[1][0]], [x], [cell.weight_hh], [cell.bias_ih, states[2][0]], [cell.weight_ih, x]):
            found += torch.autograd.grad(loss, wanted, retain_graph=True)
        return found

    same(way)


def test_parameters_are_frozen_between_steps() -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        cell.requires_grad_(True)
        state = last_of(cell, x[:2])
        cell.weight_hh.requires_grad_(False)
        state = cell(x[2], state)
        cell.requires_grad_(False)
        state = cell(x[3], state)
        cell.requires_grad_(True)
        return everything(cell(x[0], state)[0].sum(), cell, x)

    same(way)


def test_a_backward_that_is_broken_off_leaves_nothing() -> None:
    class Stop(Exception):
        pass

    def way(cell: nn.Module, x: Tensor) -> Any:
        state = cell(x[0], None)
        stopping = [True]

        def stop(_: Tensor) -> None:
            if stopping:
                raise Stop

        state[0].register_hook(stop)
        loss = last_of(cell, x[1:], state)[0].sum()
        with pytest.raises(Stop):
            everything(loss, cell, x, retain_graph=True)
        stopping.clear()
        return everything(loss, cell, x)

    same(way)


@kinds
def test_second_derivatives_and_many_gradients_at_once(kind: str) -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        out = h(last_of(cell, x))
        first = everything(out.sin().sum(), cell, x, create_graph=True)
        second = everything(sum(one.square().sum() for one in first), cell, x, retain_graph=True)
        directions = torch.randn(2, *out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
        return *second, *everything(out, cell, x, grad_outputs=directions, is_grads_batched=True)

    same(way, kind)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(use_reentrant: bool) -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        state = cell(x[0], None)
        for one in x[1:]:
            state = checkpoint(cell, one, state, use_reentrant=use_reentrant)
        cell.zero_grad()
        state[0].sum().backward()
        return [parameter.grad for parameter in cell.parameters()]

    same(way)


def test_autocast_around_backward_changes_nothing() -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        loss = last_of(cell, x)[0].sum()
        with torch.autocast("cpu", torch.bfloat16):
            return everything(loss, cell, x)

    same(way)


@pytest.mark.parametrize("what", ["weight_hh", "state"])
def test_what_is_changed_before_backward_is_an_error(what: str) -> None:
    cell, x = pair("GRUCell")[0], sequence()
    state = last_of(cell, x[:2])
    loss = last_of(cell, x[2:], state).sum()
    with torch.no_grad():
        (cell.weight_hh if what == "weight_hh" else state).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_memory_that_is_freed_before_backward_is_an_error() -> None:
    cell, x = pair("GRUCell")[0], sequence()
    loss = last_of(cell, x).sum()
    cell.weight_hh.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="data is not allocated"):
        loss.backward()


@kinds
def test_no_sequences_at_all(kind: str) -> None:
    ours, theirs = pair(kind)
    x = sequence(batch=(0,))
    for _ in range(2):
        assert_close(*[everything(h(last_of(cell, x)).sum(), cell, x) for cell in (ours, theirs)], 0.0)


def test_what_an_optimizer_changes_takes_effect() -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        optimizer, losses = torch.optim.SGD(cell.parameters(), 0.1), []
        for _ in range(3):
            loss = last_of(cell, x)[0].square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    same(way)


def test_gradients_that_are_not_dense() -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        state = last_of(cell, x)
        loss = state[0].sum() + (state[1].t() * torch.arange(BATCH, dtype=x.dtype)).sum()
        return everything(loss, cell, x)

    same(way)


def test_a_backward_within_another_one() -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        states = [cell(x[0], None)]
        for one in x[1:]:
            states.append(cell(one, states[-1]))
        other, first, within = states[-1].square().sum(), [True], []

        def hook(grad: Tensor) -> Tensor:
            if first:
                first.clear()
                within.extend(torch.autograd.grad(other, cell.weight_hh, retain_graph=True))
            return grad

        states[1].register_hook(hook)
        loss = everything(states[-1].sum(), cell, x, retain_graph=True)
        return *within, *loss

    same(way, "GRUCell")


def test_two_threads_that_differentiate_one_loop() -> None:
    cell, x = pair("GRUCell")[0], sequence(30)
    for _ in range(2):
        state = last_of(cell, x)
    losses = [state.sum(), state.square().sum()]
    expected = [everything(loss, cell, x, retain_graph=True) for loss in losses]
    ready = Barrier(2)

    def work(loss: Tensor) -> tuple[Tensor, ...]:
        ready.wait()
        return everything(loss, cell, x, retain_graph=True)

    with ThreadPoolExecutor(2) as pool:
        for found, wanted in zip(pool.map(work, losses), expected, strict=True):
            assert_close(found, wanted, 1e-12)


def test_rows_go_with_their_backward() -> None:
    """Also where it does not reach the loop's first step."""
    cell, x = pair("GRUCell")[0], sequence()
    first = cell(x[0], None)
    for _ in range(2):
        first = cell(x[0], None)
    last = last_of(cell, x[1:], first)
    torch.autograd.grad(last.sum(), [first, cell.weight_hh], retain_graph=True)
    torch.autograd.grad(last.sum(), first)
    assert first.grad_fn.loop.sums == {}


def test_rows_of_a_long_loop_are_multiplied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "MOST_BYTES", 3000)
    same(lambda cell, x: everything(h(last_of(cell, torch.cat([x, x, x]))).sum(), cell, x), "GRUCell")
    same(lambda cell, x: everything(h(last_of(cell, torch.cat([x, x, x]))).sum(), cell, x), "LSTMCell", bias=False)


def test_gradients_whose_memory_holds_their_negatives() -> None:
    def way(cell: nn.Module, x: Tensor) -> Any:
        state = last_of(cell, x)
        state.register_hook(lambda grad: torch._neg_view(grad.clone()))
        return everything(state.square().sum(), cell, x)

    same(way, "GRUCell")


def test_no_gradient_is_none() -> None:
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            return None

    cell, x = pair("GRUCell")[0], sequence()
    Nothing.apply(last_of(cell, x)).sum().backward()
    assert all(parameter.grad is None for parameter in cell.parameters())


def test_an_input_that_changes_during_backward_is_an_error() -> None:
    cell, x = pair("GRUCell")[0], sequence().detach()
    middle = last_of(cell, x[:2])
    middle.register_hook(lambda _: (x.zero_(), None)[1])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        last_of(cell, x[2:], middle).sum().backward()


def test_compiled_autograd() -> None:
    compiled = pytest.importorskip("torch._dynamo.compiled_autograd")
    cell, x = pair("GRUCell")[0], sequence()
    expected = everything(last_of(cell, x).sum(), cell, x)
    loss = last_of(cell, x).sum()
    with compiled._enable(lambda graph: graph):
        loss.backward()
    assert_close([x.grad, *(parameter.grad for parameter in cell.parameters())], list(expected), 1e-12)


def test_a_parameter_of_a_class_is_none_of_the_cells() -> None:
    """What requires a gradient without a share in the results decides nothing about a call that does."""
    cell = pair("GRUCell")[0]
    cell.extra = nn.Parameter(torch.ones((), dtype=torch.float64))
    for name, parameter in cell.named_parameters():
        parameter.requires_grad_(name == "extra")
    x = sequence().detach()
    assert not any(cell(x[0]).requires_grad for _ in range(3))
    cell.requires_grad_(True)
    assert cell(x[0]).requires_grad
