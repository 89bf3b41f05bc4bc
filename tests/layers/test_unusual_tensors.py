"""Tensors whose memory is not what it seems, and those who watch: tracers, subclasses, dual numbers, modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor

import fastrnn
from tests.torch_parity import operator_backends


@pytest.fixture
def x() -> Tensor:
    """(T=5, B=4, I=3), where the test creates its tensors."""
    return torch.linspace(-1, 1, 60).view(5, 4, 3)


def negative(tensor: Tensor) -> Tensor:
    """A view whose values are `-tensor`, though its memory holds `tensor`."""
    return torch._neg_view(tensor)


@operator_backends
def test_negative_views(backend: str, x: Tensor) -> None:
    gru = fastrnn.GRU(3, 4, backend=backend)
    assert torch.equal(gru(negative(x))[0], gru(-x)[0])
    output = gru(x)[0]
    upstream = torch.randn_like(output)
    got = torch.autograd.grad(output, gru.weight_hh_l0, negative(upstream), retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(output, gru.weight_hh_l0, -upstream))


@operator_backends
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit.trace's own
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # checks of sizes are traced as constants
def test_a_traced_module_computes_the_same(backend: str, x: Tensor) -> None:
    lstm = fastrnn.LSTM(3, 4, backend=backend)
    with torch.no_grad():
        traced = torch.jit.trace(lstm, (x,))
        torch.testing.assert_close(traced(x)[0], lstm(x)[0])


@operator_backends
def test_parameters_of_a_wrapper_class(backend: str, x: Tensor) -> None:
    gru = fastrnn.GRU(3, 4, backend=backend)
    doubled = {name: TwoTensor(p.detach(), p.detach() * 0) for name, p in gru.named_parameters()}
    result = torch.func.functional_call(gru, doubled, (x,))[0]
    torch.testing.assert_close(result.a, gru(x)[0])
    torch.testing.assert_close(result.b, torch.func.functional_call(gru, {n: t.b for n, t in doubled.items()}, (x,))[0])


@operator_backends
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own rules for jvp are scripted
def test_dual_numbers_keep_their_tangent(grad: bool, backend: str, x: Tensor) -> None:
    gru = fastrnn.GRU(3, 4, backend=backend, dtype=torch.float64)
    x, dx = x.double(), torch.randn(5, 4, 3, dtype=torch.float64)
    expected = torch.func.jvp(lambda x: gru(x)[0], (x,), (dx,))[1]
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(gru(forward_ad.make_dual(x, dx))[0]).tangent
    torch.testing.assert_close(tangent, expected)


@operator_backends
def test_packed_sequences_under_another_default_device(backend: str, x: Tensor) -> None:
    gru = fastrnn.GRU(3, 4, backend=backend)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [5, 3, 2, 1])
    expected = gru(packed)[0].data
    with torch.device("meta"):
        assert torch.equal(gru(packed)[0].data, expected)


@operator_backends
def test_autocast_leaves_float64_alone(backend: str, x: Tensor) -> None:
    gru = fastrnn.GRU(3, 4, dtype=torch.float64, backend=backend)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert gru(x.double())[0].dtype == torch.float64


def test_complex_and_integer_input_is_refused(x: Tensor) -> None:
    with pytest.raises(TypeError, match=r"input must be floating point and real, got torch\.complex64"):
        fastrnn.GRU(3, 4, dtype=torch.complex64)(x.to(torch.complex64))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"RNN input dtype \(torch\.int64\)"):
        fastrnn.GRU(3, 4)(x.long())


@operator_backends
def test_a_nan_state_of_an_empty_sequence_stays_there(backend: str, x: Tensor) -> None:
    gru = fastrnn.GRU(3, 4, backend=backend)
    h0 = torch.zeros(1, 4, 4)
    h0[:, 1] = float("nan")
    gru(x, h0, lengths=torch.tensor([5, 0, 3, 1]))[0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in gru.parameters())


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_the_operator_itself_takes_any_integer_lengths(dtype: torch.dtype, x: Tensor) -> None:
    gru = fastrnn.GRU(3, 4, backend="auto")
    w_ih, w_hh, *biases = gru.all_weights[0]
    lengths = torch.tensor([5, 0, 3, 1])
    arguments = ([w_ih], [w_hh[None]], biases, [], [torch.zeros(1, 4, 4)], lengths.to(dtype))
    states, *_ = torch.ops.fastrnn.gru_forward(x, *arguments, None, False, None, False, False, "auto")
    assert torch.equal(states[0], gru(x, lengths=lengths)[0])
