"""What only a GPU can show of the Triton backend: graphs, streams, no synchronisation, long and large tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import backends
from fastrnn.backends.triton import configurations
from tests.tolerances import FACTOR, FLOOR, relative_error

reason = backends.module("triton").ready()
pytestmark = [
    pytest.mark.skipif(reason is not None or configurations.INTERPRETED, reason=f"triton: {reason or 'interpreted'}"),
    pytest.mark.parametrize("backend", ["triton"]),  # names the backend, and with it the device
]
kinds = pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
hidden_sizes = pytest.mark.parametrize("hidden", [64, 640], ids=["persistent", "steps"])

Step = tuple[Tensor, list[Tensor]]


def make(kind: str, hidden: int, backend: str, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
    return getattr(fastrnn, kind)(48, hidden, backend=backend, dtype=dtype, **options)


def training_step(module: Any, x: Tensor, dy: Tensor, **arguments: Tensor) -> Step:
    output = module(x, **arguments)[0]
    return output, list(torch.autograd.grad(output, [x, *module.parameters()], dy))


def masks(steps: int, batch: int) -> dict[str, Tensor]:
    return {"lengths": torch.randint(0, steps + 1, (batch,)), "resets": torch.rand(steps, batch) < 0.1}


@kinds
@hidden_sizes
def test_a_training_step_in_a_cuda_graph(kind: str, hidden: int, backend: str) -> None:
    module, steps, batch = make(kind, hidden, backend, bidirectional=True), 20, 9
    x = torch.randn(steps, batch, 48, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(steps, batch, 2 * hidden, dtype=torch.bfloat16)
    arguments = masks(steps, batch)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        training_step(module, x, dy, **arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = training_step(module, x, dy, **arguments)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    expected = training_step(module, x, dy, **arguments)
    torch.cuda.synchronize()
    for got, want in zip((captured[0], *captured[1]), (expected[0], *expected[1]), strict=True):
        assert torch.equal(got, want)


@kinds
@hidden_sizes
def test_nothing_synchronises(kind: str, hidden: int, backend: str) -> None:
    module, steps, batch = make(kind, hidden, backend), 7, 5
    x = torch.randn(steps, batch, 48, dtype=torch.bfloat16, requires_grad=True)
    dy, arguments = torch.randn(steps, batch, hidden, dtype=torch.bfloat16), masks(steps, batch)
    training_step(module, x, dy, **arguments)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(module, x, dy, **arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@kinds
@hidden_sizes
def test_results_repeat_bitwise(kind: str, hidden: int, backend: str) -> None:
    module = make(kind, hidden, backend)
    x = torch.randn(50, 70, 48, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(50, 70, hidden, dtype=torch.bfloat16)
    first, second = (training_step(module, x, dy) for _ in range(2))
    for got, want in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        assert torch.equal(got, want)


@kinds
def test_another_stream(kind: str, backend: str) -> None:
    module, x = make(kind, 64, backend), torch.randn(20, 9, 48, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = module(x)[0]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            got = module(x)[0]
        torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(got, expected)


@kinds
def test_a_very_long_sequence(kind: str, backend: str) -> None:
    """T = 70,000 in TF32, beside cuDNN in float64."""
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    module = make(kind, 32, backend, torch.float32)
    wide = make(kind, 32, "aten", torch.float64)
    wide.load_state_dict(module.state_dict())
    x = torch.randn(70_000, 2, 48)
    with torch.no_grad():
        got, truth = module(x)[0], wide(x.double())[0]
    assert relative_error(got, truth) < 1e-2  # each step's product is cut to 10 bits
    assert relative_error(got[-100:], truth[-100:]) < 1e-2


def test_more_than_two_to_the_31_elements(backend: str) -> None:
    """The last sequences of a batch whose offsets do not fit 32 bits are what they are alone."""
    steps, batch, hidden = 2048, 8200, 128
    assert steps * batch * hidden > 2**31
    module = fastrnn.RNN(1, hidden, backend=backend, dtype=torch.bfloat16)
    x = torch.randn(steps, batch, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        last, alone = module(x)[0][:, -8:], module(x[:, -8:])[0]
    assert relative_error(last, alone) < 1e-2


@kinds
def test_float32_without_tf32(kind: str, backend: str) -> None:
    """Three TF32 products are about as precise as float32."""
    module = make(kind, 64, backend, torch.float32)
    wide = make(kind, 64, "reference", torch.float64)
    wide.load_state_dict(module.state_dict())
    x = torch.randn(30, 20, 48)
    with torch.no_grad():
        assert relative_error(module(x)[0], wide(x.double())[0]) < 3e-6


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_long_memory_in_16_bit(kind: str, dtype: torch.dtype, backend: str) -> None:
    """Forget and update gates near 1: errors of tanh.approx do not add up to more than cuDNN's own, beside float64."""
    module, own = make(kind, 64, backend, dtype), make(kind, 64, "aten", dtype)
    wide = make(kind, 64, "reference", torch.float64)
    with torch.no_grad():
        module.bias_hh_l0[64:128] += 6
        for other in (own, wide):
            other.load_state_dict(module.state_dict())
        x = torch.randn(2000, 4, 48, dtype=dtype)
        truth = wide(x.double())[0]
        assert relative_error(module(x)[0], truth) <= FACTOR * relative_error(own(x)[0], truth) + FLOOR[dtype]


@kinds
@hidden_sizes
def test_compiled_with_inductor(kind: str, hidden: int, backend: str) -> None:
    module = make(kind, hidden, backend)
    x = torch.randn(20, 9, 48, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(20, 9, hidden, dtype=torch.bfloat16)
    compiled = torch.compile(module, fullgraph=True)
    output = compiled(x)[0]
    gradients = torch.autograd.grad(output, [x, *module.parameters()], dy)
    expected = training_step(module, x, dy)
    for got, want in zip((output, *gradients), (expected[0], *expected[1]), strict=True):
        assert relative_error(got, want) < 1e-2
