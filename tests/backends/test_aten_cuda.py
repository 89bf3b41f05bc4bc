"""Torch's kernels on a GPU (`backends.aten_cuda`): what cuDNN asks of a call, held by an engine that asks the same."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.backends import aten, aten_cuda
from fastrnn.backends.stack import Stack
from fastrnn.cells import CELLS
from tests.tolerances import DROP_IN

T, B, I, H = 5, 3, 4, 6


def make_stack(cell: str, layers: int = 2, lengths: Sequence[int] = (), **options: Any) -> Stack:
    rows, states = len(CELLS[cell].x_gates) * H, len(CELLS[cell].states)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=torch.float64).mul_(0.5).requires_grad_()

    widths = [I, *[2 * H] * (layers - 1)]
    weights = [[random(rows, width), random(rows, H), random(rows), random(rows)] for width in widths for _ in range(2)]
    x = random(T, B, I)
    packed = None
    if lengths:
        rows = pack_padded_sequence(x.detach(), torch.tensor(lengths))
        packed = (rows.data.requires_grad_(), rows.batch_sizes)
    states0 = tuple(random(2 * layers, B, H) for _ in range(states))
    return Stack(cell, x, states0, weights, bidirectional=True, packed=packed, **options)


class OnceDifferentiable(torch.autograd.Function):
    """The identity, whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def cudnn(stack: Stack) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Torch's CPU kernels under cuDNN's conditions."""
    if not all(state.is_contiguous() for state in stack.states0):
        raise RuntimeError("rnn: hx is not contiguous")
    if torch.is_grad_enabled() and not stack.training:
        raise RuntimeError("cudnn RNN backward can only be called in training mode")
    output, finals = aten.run(stack)
    return OnceDifferentiable.apply(output), tuple(map(OnceDifferentiable.apply, finals))


def arguments(stack: Stack) -> list[Tensor]:
    return stack.tensors()


def gradients(results: tuple[Tensor, tuple[Tensor, ...]], stack: Stack, **options: Any) -> list[Tensor]:
    output, finals = results
    outputs = [output, *finals]
    torch.manual_seed(1)
    return list(torch.autograd.grad(outputs, arguments(stack), [torch.randn_like(one) for one in outputs], **options))


def second(first: Sequence[Tensor], stack: Stack) -> list[Tensor]:
    return list(torch.autograd.grad(sum(one.pow(2).sum() for one in first), arguments(stack)))


def assert_equal(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=DROP_IN, atol=DROP_IN)


cells = pytest.mark.parametrize("cell", CELLS)
lengths = pytest.mark.parametrize("lengths", [(), (5, 4, 2)], ids=["padded", "packed"])


@cells
@lengths
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_gradients_of_both_orders(cell: str, lengths: Sequence[int], training: bool) -> None:
    stack = make_stack(cell, lengths=lengths, training=training)
    expected, got = aten.run(stack), aten_cuda.run(stack, cudnn)
    assert_equal([got[0], *got[1]], [expected[0], *expected[1]])
    wanted, found = (gradients(results, stack, create_graph=True) for results in (expected, got))
    assert_equal(found, wanted)
    assert_equal(second(found, stack), second(wanted, stack))


@cells
def test_the_gradient_comes_from_the_engine_where_nobody_differentiates_it(cell: str) -> None:
    stack = make_stack(cell)
    results = aten_cuda.run(stack, cudnn)
    first, again = (gradients(results, stack, retain_graph=True) for _ in range(2))
    assert not any(one.requires_grad for one in first)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert_equal(first, gradients(aten.run(stack), stack))


def test_states_that_are_not_dense() -> None:
    stack = make_stack("lstm")
    scattered = tuple(state.detach().transpose(0, 1).contiguous().transpose(0, 1) for state in stack.states0)
    assert not scattered[0].is_contiguous()
    with torch.no_grad():
        output, _ = aten_cuda.run(replace(stack, states0=scattered), cudnn)
        assert torch.equal(output, aten.run(stack)[0])


def test_dropout_is_drawn_in_training_and_cannot_be_differentiated_twice() -> None:
    stack = make_stack("gru", dropout=0.5, training=True)
    torch.manual_seed(2)
    expected = aten.run(stack)[0]
    torch.manual_seed(2)
    results = aten_cuda.run(stack, cudnn)
    assert torch.equal(results[0], expected)
    gradients(results, stack, retain_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradients(results, stack, create_graph=True)


def test_dropout_is_not_drawn_in_evaluation() -> None:
    stack = make_stack("gru", dropout=0.5, training=False)
    assert torch.equal(aten_cuda.run(stack, cudnn)[0], aten.run(stack)[0])


def test_arguments_that_depend_on_each_other_have_their_direct_share() -> None:
    stack = make_stack("rnn_tanh")
    stack = replace(stack, states0=(stack.states0[0] * stack.weights[0][2].sum(),))
    wanted, found = (
        gradients(results, stack, create_graph=True) for results in (aten.run(stack), aten_cuda.run(stack, cudnn))
    )
    assert_equal(found, wanted)


def test_weights_that_lie_apart_are_brought_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else cuDNN warns. The call's own weights stay where they are and get the gradients."""
    asked: list[tuple[Any, ...]] = []

    def flatten(weights: list[Tensor], *sizes: Any) -> None:
        asked.append(sizes)
        piece = torch.cat([tensor.flatten() for tensor in weights])
        for tensor, part in zip(weights, piece.split([tensor.numel() for tensor in weights]), strict=True):
            tensor.set_(part.view(tensor.shape))

    def strict(stack: Stack) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert aten_cuda.is_in_one_piece(stack)
        return cudnn(stack)

    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", flatten)
    monkeypatch.setattr(torch, "_use_cudnn_rnn_flatten_weight", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: True)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "get_cudnn_mode", lambda mode: mode)
    stack = make_stack("rnn_tanh", training=True)
    before = [(tensor.data_ptr(), tensor._version) for tensor in arguments(stack)]
    results = aten_cuda.run(stack, strict)
    assert_equal(gradients(results, stack), gradients(aten.run(stack), stack))
    with torch.no_grad():
        assert_equal(aten_cuda.run(stack, strict)[1], aten.run(stack)[1])
    assert [(tensor.data_ptr(), tensor._version) for tensor in arguments(stack)] == before
    # weights of a layer and direction, input size, mode, hidden size, projection, layers, batch_first, bidirectional
    assert asked == [(4, I, "RNN_TANH", H, 0, 2, False, True)] * 2


class Kept:
    """What is in the place of a tensor that is saved for backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("retain_graph", [False, True])
def test_what_backward_needed_is_freed_by_it(retain_graph: bool) -> None:
    """Not with the loss, which lives until after the next forward."""
    kept: list[weakref.ref[Kept]] = []

    def pack(tensor: Tensor) -> Kept:
        one = Kept(tensor)
        kept.append(weakref.ref(one))
        return one

    stack = make_stack("rnn_tanh", training=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        loss = aten_cuda.run(stack, cudnn)[0].sum()
    loss.backward(retain_graph=retain_graph)
    assert len(kept) > len(arguments(stack))
    assert any(one() is not None for one in kept) == retain_graph


def test_autocast_does_not_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under it torch would cast what cuDNN gets to float16."""
    seen: list[bool] = []

    def engine(stack: Stack) -> tuple[Tensor, tuple[Tensor, ...]]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return aten.run(stack)

    stack = make_stack("gru", training=True)
    stack = aten_cuda._with(stack, [tensor.detach().bfloat16().requires_grad_() for tensor in arguments(stack)])
    with torch.autocast("cpu", torch.bfloat16):
        aten_cuda.run(stack, engine)
        with torch.no_grad():
            aten_cuda.run(stack, engine)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False, False]


@pytest.fixture
def gru_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> fastrnn.GRU:
    """One that takes the way of a GPU on the CPU."""
    engine = aten._run
    monkeypatch.setattr(aten, "run", lambda stack: aten_cuda.run(stack, engine))
    return fastrnn.GRU(I, H, 2, backend="aten")


@pytest.mark.exhaustive
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_compiled_with_gradients(gru_on_a_gpu: fastrnn.GRU, training: bool) -> None:
    gru, x = gru_on_a_gpu.train(training), torch.randn(T, B, I)
    wanted = torch.autograd.grad(gru(x)[0].sum(), list(gru.parameters()))
    output = torch.compile(gru, backend="aot_eager", fullgraph=True)(x)[0]
    for one, other in zip(torch.autograd.grad(output.sum(), list(gru.parameters())), wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:DeprecationWarning")
def test_traced_while_gradients_are_on(gru_on_a_gpu: fastrnn.GRU) -> None:
    x = torch.randn(T, B, I)
    traced = torch.jit.trace(gru_on_a_gpu, (x,))
    assert torch.equal(traced(x)[0], gru_on_a_gpu(x)[0])


def test_second_derivatives_under_autocast_are_not_rounded() -> None:
    stack = make_stack("gru")
    stack = replace(stack, x=stack.x.float(), states0=tuple(s.float() for s in stack.states0))
    stack = replace(stack, weights=[[w.detach().float().requires_grad_() for w in group] for group in stack.weights])
    x = stack.x.detach().requires_grad_()
    stack = replace(stack, x=x)
    (wanted,) = torch.autograd.grad(aten.run(stack)[0].sum(), x, create_graph=True)
    results = aten_cuda.run(stack, cudnn)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(results[0].sum(), x, create_graph=True)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_hooks_see_what_is_saved() -> None:
    stack, seen = make_stack("rnn_tanh", training=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: seen.append(tensor) or tensor, lambda tensor: tensor):
        aten_cuda.run(stack, aten.run)
    plain = len(seen)
    seen.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: seen.append(tensor) or tensor, lambda tensor: tensor):
        aten.run(stack)
    assert plain == len(seen)


def test_what_lies_in_one_piece() -> None:
    stack = make_stack("gru", layers=1)
    assert not aten_cuda.is_in_one_piece(stack)
    flat = torch.cat([tensor.detach().flatten() for group in stack.weights for tensor in group])
    pieces = iter(flat.split([tensor.numel() for group in stack.weights for tensor in group]))
    weights = [[next(pieces).view(tensor.shape) for tensor in group] for group in stack.weights]
    assert aten_cuda.is_in_one_piece(replace(stack, weights=weights))
