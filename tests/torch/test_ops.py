"""The operators as torch sees them: registration, derivatives of every order, and who sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn import ops
from fastrnn.cells import CELLS
from tests.random_layers import Shape, cast, parameters, random_layer
from tests.torch_parity import operator_backends

SMALL = Shape(steps=3, batch=2, inputs=2, hidden=3, directions=2, lengths=True, resets=True)


class OnAGPU(Tensor):
    """Says so, and lies on the CPU, where one can look."""

    device = property(lambda self: torch.device("cuda"))  # type: ignore[assignment]


def test_lengths_that_nobody_looks_at_are_clamped() -> None:
    layer = random_layer("gru", Shape(steps=3))
    lengths = torch.tensor([-1, 2, 9], dtype=torch.int32).as_subclass(OnAGPU)
    clamped = ops._checked(replace(layer, x=layer.x.as_subclass(OnAGPU), lengths=lengths)).lengths
    assert clamped is not None
    assert (clamped.tolist(), clamped.dtype) == ([0, 2, 3], torch.int64)


def finite_layer(cell: str, shape: Shape) -> Any:
    """A random layer without NaN beyond the lengths, since the checkers below compare inputs, too."""
    layer = random_layer(cell, shape)
    layer.x.nan_to_num_()
    return layer


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("shape", [Shape(), SMALL, Shape(steps=0), Shape(steps=1)], ids=str)
def test_forward_operator_passes_opcheck(cell: str, training: bool, shape: Shape) -> None:
    layer = finite_layer(cell, shape)
    if training:
        layer = cast(layer, torch.float64)
    arguments = (*layer.arguments(), training, training, "reference")
    torch.library.opcheck(getattr(torch.ops.fastrnn, f"{cell}_forward").default, arguments)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("needs", [(True, True), (False, True), (True, False)], ids=["both", "weights", "x"])
def test_backward_operator_passes_opcheck(cell: str, needs: tuple[bool, bool]) -> None:
    layer = finite_layer(cell, SMALL)
    result = ops.forward(layer, history=True, gates=True, backend="reference")
    gradients: tuple[list[Tensor | None], list[Tensor | None]] = (
        [torch.randn_like(state) for state in result.states],
        [None for _ in result.finals],
    )
    arguments = (*gradients, result.states, result.saved, *layer.arguments(), *needs, "reference")
    torch.library.opcheck(getattr(torch.ops.fastrnn, f"{cell}_backward").default, arguments)


def outputs_of(cell: str, layer: Any) -> Any:
    """The operator as a function of its differentiable tensors, for the checkers of derivatives."""

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        each = iter(tensors)
        given = layer.with_tensors(lambda tensor: next(each) if tensor.is_floating_point() else tensor)
        operator = getattr(torch.ops.fastrnn, f"{cell}_forward")
        states, finals, _ = operator(*given.arguments(), True, True, "reference")
        return (*states, *finals)

    return function


@pytest.mark.parametrize(
    ("cell", "shape"),
    [
        *(pytest.param(cell, SMALL, marks=pytest.mark.exhaustive) for cell in CELLS if cell != "gru"),
        ("gru", SMALL),
        ("lstm", Shape(2, 2, 2, 3, projection=2)),
    ],
)
def test_first_and_second_derivatives(cell: str, shape: Shape) -> None:
    layer = cast(finite_layer(cell, shape), torch.float64)
    tensors = tuple(parameters(layer).values())
    torch.autograd.gradcheck(outputs_of(cell, layer), tensors)
    torch.autograd.gradgradcheck(outputs_of(cell, layer), tensors)


def results(module: torch.nn.Module, run: Any, x: Tensor, **arguments: Any) -> list[Tensor]:
    output, finals = run(x, **arguments)
    outputs = [output, *(finals if isinstance(finals, tuple) else (finals,))]
    loss = sum((tensor * tensor).sum() for tensor in outputs)
    return [*outputs, *torch.autograd.grad(loss, [x, *module.parameters()])]


def test_a_shape_can_be_inferred_without_computing() -> None:
    with torch.device("meta"):
        module = fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True, backend="reference")
        output, (hn, cn) = module(torch.zeros(5, 2, 3))
    assert output.shape == (5, 2, 8)
    assert hn.shape == cn.shape == (4, 2, 4)
    assert output.device.type == "meta"


class Recorder(TorchDispatchMode):
    """Notes the names of fastrnn's operators that pass through the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastrnn":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@operator_backends
def test_a_mode_sees_the_operators_and_changes_no_result(backend: str) -> None:
    """Without one the operators' work is called directly; both ways must agree."""
    module = fastrnn.GRU(4, 5, backend=backend)
    x = torch.randn(6, 3, 4, requires_grad=True)
    unwatched = results(module, module, x)
    with Recorder() as recorder:
        watched = results(module, module, x)
    assert recorder.names == ["gru_forward", "gru_backward"]
    assert all(torch.equal(a, b) for a, b in zip(watched, unwatched, strict=True))


def test_the_profiler_sees_the_operators() -> None:
    lstm = fastrnn.LSTM(4, 5, backend="reference")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        lstm(torch.randn(6, 3, 4))[0].sum().backward()
    names = {event.name for event in profile.events()}
    assert {"fastrnn::lstm_forward", "fastrnn::lstm_backward"} <= names


def test_a_default_device_is_for_new_tensors_only() -> None:
    """What a kernel allocates belongs to its arguments' device, whatever device new tensors are made on."""
    lstm = fastrnn.LSTM(4, 5, bidirectional=True)
    x = torch.randn(6, 3, 4)
    expected = lstm(x)[0]
    with torch.device("meta"):
        assert torch.equal(lstm(x)[0], expected)
