"""Derivatives by torch.func and by autograd around it: the first through kernels, all others exact by the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastrnn
from tests.torch.transformed import (
    MEMBERS,
    assert_by_kernels,
    assert_same,
    cases,
    counted,
    loss,
    make,
    masks,
    needs_numba,
    sequences,
    states,
    values,
)

pytestmark = [
    needs_numba,
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # torch's own rules for jvp are scripted
]


def of_x(module: Any, lengths: Tensor | None = None, resets: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    return lambda x: loss(module, values(module), x, None, lengths, resets)


@cases
def test_first_derivatives(case: str) -> None:
    module = make(case)
    x, hx, given, layers = sequences(module), states(module), masks(module), module.num_layers

    def output(parameters: Any, x: Tensor) -> Any:
        return functional_call(module, parameters, (x, hx), dict(zip(("lengths", "resets"), given, strict=True)))

    def means(parameters: Any, x: Tensor) -> Tensor:
        return output(parameters, x)[0].mean((0, 1))

    gradients = grad(lambda p, x, hx: loss(module, p, x, hx, *given), (0, 1, 2))
    assert_by_kernels(lambda: gradients(values(module), x, hx), layers, layers)

    def pulled_back() -> Any:
        results, pull = vjp(output, values(module), x)
        return pull(results)

    assert_by_kernels(pulled_back, layers, layers)
    jacobian = jacrev(means, (0, 1))
    backward = layers * (module(x)[0].shape[-1] if case == "projected" else 1)
    assert_by_kernels(lambda: jacobian(values(module), x), layers, backward)
    assert_by_kernels(lambda: jacrev(lambda x: means(values(module), x))(x), layers, layers)


@cases
def test_forward_mode(case: str) -> None:
    """Through the reference, whatever backend is named, and along the reverse mode's gradients."""
    module = make(case)
    x, dx = sequences(module, 2)
    function = of_x(module, *masks(module))
    assert_by_kernels(lambda: jvp(function, (x,), (dx,)), 0)
    assert_by_kernels(lambda: jacfwd(lambda x: module(x)[0].sum((0, 1)))(x), 0)
    expected = (grad(function)(x) * dx).sum()
    assert_same(jvp(function, (x,), (dx,))[1], expected)
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(x, dx))
        assert_same(forward_ad.unpack_dual(dual).tangent, expected)


@cases
def test_a_gradients_tangent_passes_backward(case: str) -> None:
    """The graph is autograd's, without a tangent; what arrives in its backward has one, which backward carries on."""
    module = make(case)
    x = sequences(module).requires_grad_()
    for output in (module(x)[0], vmap(lambda x: module(x)[0])(x[None])[0]):
        d, tangent = torch.randn(2, *output.shape, dtype=torch.float64)
        with forward_ad.dual_level():
            (gradient,) = torch.autograd.grad(output, x, forward_ad.make_dual(d, tangent), retain_graph=True)
            got = forward_ad.unpack_dual(gradient).tangent
        assert_same(got, torch.autograd.grad(output, x, tangent)[0])
    _, pull = vjp(lambda x: module(x)[0], x.detach())
    assert_same(jvp(pull, (d,), (tangent,))[1], pull(tangent))


@cases
def test_second_derivatives(case: str) -> None:
    """However they are taken, they are the same; the kernels serve the first derivative inside where they can."""
    module = make(case)
    x = sequences(module)
    function = of_x(module, *masks(module))
    layers = module.num_layers
    assert_by_kernels(lambda: hessian(function)(x), 0)
    assert_by_kernels(lambda: jacrev(jacrev(function))(x), layers, 2 * layers)
    assert_same(jacrev(jacrev(function))(x), hessian(function)(x))
    assert_by_kernels(lambda: jvp(grad(function), (x,), (x,)), 0)
    assert_by_kernels(lambda: grad(lambda x: jvp(function, (x,), (2 * x,))[1])(x), 0)
    third = grad(lambda x: grad(lambda x: grad(function)(x).square().sum())(x).square().sum())
    assert_by_kernels(lambda: third(x), layers, 3 * layers)


@cases
def test_gradients_of_penalties(case: str) -> None:
    """On a gradient, and on each sample's own gradients of the parameters: in each order of vmap and grad."""
    module = make(case)
    x, (lengths, resets) = sequences(module, MEMBERS), masks(module, MEMBERS)
    layers = module.num_layers

    def on_gradient(parameters: Any) -> Tensor:
        return grad(lambda x: loss(module, parameters, x, None, lengths[0], resets[0]))(x[0]).square().sum()

    assert_by_kernels(lambda: grad(on_gradient)(values(module)), layers, 2 * layers)
    of_each = vmap(grad(lambda p, *given: loss(module, p, *given)), (None, 0, None, 0, 0))

    def on_each(parameters: Any, x: Tensor) -> Tensor:
        return sum(d.square().sum() for d in of_each(parameters, x, None, lengths, resets).values())

    calls = layers * (1 + MEMBERS if case == "projected" else 2)
    assert_by_kernels(lambda: grad(on_each, (0, 1))(values(module), x), layers, calls)


@cases
def test_autograd_around_gradients_of_each_sample(case: str) -> None:
    """`on_each` of the test above, by autograd: what stands beneath all transforms is its graph."""
    module = make(case)
    x = sequences(module, MEMBERS).requires_grad_()
    of_each = vmap(grad(lambda p, x: loss(module, p, x)), (None, 0))

    def gradients() -> Any:
        penalty = sum(d.square().sum() for d in of_each(dict(module.named_parameters()), x).values())
        return torch.autograd.grad(penalty, [x, *module.parameters()])

    layers = module.num_layers
    assert_by_kernels(gradients, layers, layers * (1 + MEMBERS if case == "projected" else 2))


@cases
def test_vmap_over_autograd(case: str) -> None:
    """Many gradients through one graph of autograd's, at once."""
    module = make(case, backend="numba")
    # With resets, no call is remembered, so that all kernels are reached through operators.
    output = module(sequences(module), resets=masks(module)[1])[0]
    wanted = list(module.parameters())
    arriving = torch.randn(MEMBERS, *output.shape, dtype=torch.float64)

    def of(d: Tensor) -> Any:
        return torch.autograd.grad(output, wanted, d, retain_graph=True)

    with counted() as calls:
        got = vmap(of)(arriving)
    expected = [torch.stack(parts) for parts in zip(*map(of, arriving), strict=True)]
    assert_same(got, tuple(expected))
    assert calls == {"backward": module.num_layers * (MEMBERS if case == "projected" else 1)}
    at_once = torch.autograd.grad(output, wanted, arriving, is_grads_batched=True, retain_graph=True)
    assert_same(at_once, tuple(expected))


def test_functionalization() -> None:
    module = make("GRU")
    x = sequences(module)
    assert_by_kernels(lambda: torch.func.functionalize(module)(x), 0)


@pytest.mark.parametrize(
    ("name", "options", "members"),
    [
        *((name, {"num_layers": 2, "bidirectional": True}, None) for name in ("RNN", "GRU", "LSTM")),
        *((name, {}, 2) for name in ("RNN", "GRU", "LSTM")),
        *(("LSTM", {"proj_size": 1}, members) for members in (None, 2)),
    ],
    ids=str,
)
def test_derivatives_are_those_of_the_values(name: str, options: dict[str, Any], members: int | None) -> None:
    """To the second order, by differences, with lengths and resets: of a module, and of vmap over one."""
    module = getattr(fastrnn, name)(2, 2, dtype=torch.float64, backend="numba", **options)
    front = () if members is None else (members,)
    x = torch.randn(*front, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    lengths, resets = torch.randint(0, 4, (*front, 2)), torch.rand(*front, 3, 2) < 0.3
    lengths[..., 0] = 3
    hx = module(x[0] if front else x)[1]
    hx = [torch.randn_like(h).requires_grad_() for h in (hx if isinstance(hx, tuple) else (hx,))]
    names = [name for name, _ in module.named_parameters()]

    def function(x: Tensor, *others: Tensor) -> Any:
        states, parameters = others[: len(hx)], dict(zip(names, others[len(hx) :], strict=True))

        def call(x: Tensor, lengths: Tensor, resets: Tensor) -> Any:
            given = (x, states if name == "LSTM" else states[0])
            output, final = functional_call(module, parameters, given, {"lengths": lengths, "resets": resets})
            return (output, *(final if name == "LSTM" else (final,)))

        return vmap(call)(x, lengths, resets) if front else call(x, lengths, resets)

    everything = (x, *hx, *module.parameters())
    assert torch.autograd.gradcheck(function, everything, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, everything, fast_mode=True)


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_derivatives_of_cells_are_those_of_the_values(name: str) -> None:
    cell = getattr(fastrnn, name)(2, 3, dtype=torch.float64, backend="numba")
    count = 2 if name == "LSTMCell" else 1
    tensors = [torch.randn(2, width, dtype=torch.float64, requires_grad=True) for width in (2, 3, 3)[: 1 + count]]
    names = [name for name, _ in cell.named_parameters()]

    def function(x: Tensor, *others: Tensor) -> Any:
        states, parameters = others[:count], dict(zip(names, others[count:], strict=True))
        return functional_call(cell, parameters, (x, states if count == 2 else states[0]))

    everything = (*tensors, *cell.parameters())
    assert torch.autograd.gradcheck(function, everything, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, everything, fast_mode=True)
