"""Streams beside what else torch has: modes, defaults, transforms, compilers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from tests.default_dtype import default_dtype
from tests.streaming.streams import in_chunks, same

INPUT, HIDDEN = 5, 9


MODES: dict[str, Any] = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "another device by default": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": lambda: torch.autograd.set_detect_anomaly(False),
}


def used(stream: fastrnn.Stream, x: Tensor) -> list[Tensor]:
    """All that a stream can do."""
    results = [
        in_chunks(stream, x, slots=[1, 0]),
        stream(x[0], slots=[2, 1], out=torch.empty(2, HIDDEN, device="cpu", dtype=torch.float32)),
    ]
    results += stream.state
    stream.state = tuple(state * 0.5 for state in stream.state)
    stream.reset([2])
    stream.reset(torch.tensor([False, True, False], device="cpu"))
    spread = torch.empty(HIDDEN, 2, device="cpu", dtype=torch.float32).T
    results += [stream(x[1], slots=[0, 2], out=spread).clone()]
    stream.module.weight_hh_l0.data.mul_(1.5)
    assert stream.stale
    stream.update()
    assert not stream.stale
    results += [stream(x[0], slots=range(2)).clone(), *stream.state]
    stream.error(x)
    return results


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("made_within", [True, False])
def test_modes(mode: str, made_within: bool, weights: str) -> None:
    """Of who makes a stream, or of who uses it."""
    module, x, threads = fastrnn.LSTM(INPUT, HIDDEN), torch.randn(4, 2, INPUT), 2 if weights == "int8" else 1
    state = {name: value.clone() for name, value in module.state_dict().items()}
    with fastrnn.stream(module, batch=2, slots=3, weights=weights, threads=threads) as stream:
        expected = used(stream, x)
    module.load_state_dict(state)
    if made_within:
        with MODES[mode]():
            stream = fastrnn.stream(module, batch=2, slots=3, weights=weights, threads=threads)
        got = used(stream, x)
    else:
        stream = fastrnn.stream(module, batch=2, slots=3, weights=weights, threads=threads)
        with MODES[mode]():
            got = used(stream, x)
        assert same(stream(x[0], slots=[0, 1]), stream._output[: 2 * HIDDEN].view(2, HIDDEN))
        stream.reset()
    stream.close()
    for number, (one, other) in enumerate(zip(got, expected, strict=True)):
        assert same(one, other), number


def test_tensors_of_inference_mode_outside_of_it() -> None:
    stream = fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN), batch=2)
    with torch.inference_mode():
        x, out = torch.randn(2, INPUT), torch.empty(HIDDEN, 2).T
        states = tuple(torch.randn(1, 2, HIDDEN) for _ in range(2))
    stream.state = states
    expected = stream(x).clone()
    stream.state = states
    assert same(stream(x, out=out).clone(memory_format=torch.contiguous_format), expected)
    assert not expected.is_inference()


def test_an_output_carries_no_gradient() -> None:
    stream = fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN))
    for x in (torch.randn(1, INPUT, requires_grad=True), torch.randn(1, 2 * INPUT, requires_grad=True)[:, ::2]):
        y = stream(x)
        assert not y.requires_grad
        assert y.grad_fn is None


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # by what jvp imports
def test_transforms_are_refused() -> None:
    stream = fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN))
    before = stream.state
    for transformed in (
        torch.func.vmap(stream),
        torch.func.vmap(lambda x: stream(x, out=torch.zeros(1, HIDDEN))),
        torch.func.vmap(lambda y: stream(torch.zeros(1, INPUT), out=y[..., 0].expand(1, HIDDEN).clone())),
    ):
        with pytest.raises(RuntimeError, match="in memory"):
            transformed(torch.randn(3, 1, INPUT))
    with pytest.raises(RuntimeError, match="in memory"):
        torch.func.grad(lambda x: stream(x).sum())(torch.randn(1, INPUT))
    with pytest.raises(RuntimeError, match="in memory"):
        torch.func.jvp(stream, (torch.randn(1, INPUT),), (torch.randn(1, INPUT),))
    assert same(stream.state, before)


def test_a_module_around_a_stream() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = fastrnn.LSTM(INPUT, HIDDEN), torch.nn.Linear(HIDDEN, 2)
            self.stream = fastrnn.stream(self.lstm)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.stream(x))

    model, x = Model(), torch.randn(3, 1, INPUT)
    expected = [model(each).clone() for each in x]
    model.stream.reset()
    named = {name: parameter.detach() * 1 for name, parameter in model.named_parameters()}
    for each, y in zip(x, expected, strict=True):
        assert same(torch.func.functional_call(model, named, each).detach(), y.detach())
    model(x[0]).sum().backward()
    assert model.lstm.weight_hh_l0.grad is None
    assert model.head.weight.grad is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_functions_around_a_stream() -> None:
    """A graph ends before it and another begins after it."""
    stream, head = fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN)), torch.nn.Linear(HIDDEN, 2)
    x = torch.randn(5, 1, INPUT)

    def step(x: Tensor) -> Tensor:
        return head(stream(x * 2))

    with torch.no_grad():
        expected = [step(each) for each in x]
        stream.reset()
        compiled = torch.compile(step, backend="eager")
        for each, y in zip(x, expected, strict=True):
            torch.testing.assert_close(compiled(each), y)
    with pytest.raises(Exception, match=r"(?s).+"):
        torch.compile(step, backend="eager", fullgraph=True)(x[0])


def test_traced_and_fake_tensors_are_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    stream = fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN))
    before = stream.state
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.randn(1, INPUT))
        with pytest.raises(RuntimeError, match="in memory"):
            stream(fake)
    with pytest.raises(RuntimeError, match="in memory"):
        make_fx(stream, tracing_mode="fake")(torch.randn(1, INPUT))
    with FakeTensorMode(), pytest.raises(RuntimeError, match="in memory"):
        fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN))
    assert same(stream.state, before)
