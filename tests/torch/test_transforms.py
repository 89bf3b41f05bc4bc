"""torch.func's transforms of the modules, against loops and autograd without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import fastrnn
from tests.torch_parity import numba_first, skip_unless_projecting

MODULES = [
    ("RNN", {"nonlinearity": "relu"}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 2, "batch_first": True}),
]
modules = pytest.mark.parametrize(("name", "options"), MODULES, ids=["RNN", "GRU", "LSTM"])


def make(name: str, options: dict[str, Any]) -> Any:
    return getattr(fastrnn, name)(3, 4, dtype=torch.float64, **options)


def loss(module: Any, parameters: dict[str, Tensor], x: Tensor, **arguments: Tensor) -> Tensor:
    return functional_call(module, parameters, (x,), arguments)[0].square().sum()


@modules
def test_vmap_over_inputs(name: str, options: dict[str, Any]) -> None:
    module = make(name, options)
    x, resets = torch.randn(5, 6, 2, 3, dtype=torch.float64), torch.rand(5, 6, 2) < 0.3
    got = vmap(lambda x, resets: module(x, resets=resets)[0])(x, resets)
    torch.testing.assert_close(got, torch.stack([module(a, resets=b)[0] for a, b in zip(x, resets, strict=True)]))


@modules
def test_vmap_over_weights_is_an_ensemble(name: str, options: dict[str, Any]) -> None:
    members = [make(name, options) for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    got = vmap(lambda p, b: functional_call(members[0], (p, b), (x,))[0])(parameters, buffers)
    torch.testing.assert_close(got, torch.stack([member(x)[0] for member in members]))


@modules
def test_gradients_for_each_sample(name: str, options: dict[str, Any]) -> None:
    module = make(name, options)
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    got = vmap(grad(lambda p, x: loss(module, p, x)), in_dims=(None, 0))(parameters, x)
    for sample in range(5):
        module.zero_grad()
        module(x[sample])[0].square().sum().backward()
        for key, parameter in module.named_parameters():
            torch.testing.assert_close(got[key][sample], parameter.grad)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own rules for jvp are scripted
@modules
def test_forward_mode_agrees_with_reverse_mode(name: str, options: dict[str, Any]) -> None:
    module = make(name, options)
    x, dx = torch.randn(2, 4, 4, 3, dtype=torch.float64)
    lengths = torch.tensor([4, 0, 3, 1])
    _, tangent = jvp(lambda x: module(x, lengths=lengths)[0].square().sum(), (x,), (dx,))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(module(x, lengths=lengths)[0].square().sum(), x)
    torch.testing.assert_close(tangent, (gradient * dx).sum())


def test_a_named_backend_does_not_stand_in_the_way() -> None:
    module = fastrnn.GRU(3, 4, backend="aten")
    x = torch.randn(5, 6, 2, 3)
    torch.testing.assert_close(vmap(lambda x: module(x)[0])(x), torch.stack([module(a)[0] for a in x]))


@numba_first
@modules
def test_vectorised_jacobian(name: str, options: dict[str, Any], backend: str) -> None:
    """Many gradients at once, as `torch.autograd.grad(..., is_grads_batched=True)` takes them."""
    if "proj_size" in options:
        skip_unless_projecting(backend)
    module = make(name, {**options, "backend": backend})
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    one_by_one, at_once = (
        torch.autograd.functional.jacobian(lambda x: module(x)[0], x, vectorize=vectorize)
        for vectorize in (False, True)
    )
    torch.testing.assert_close(at_once, one_by_one)


def test_what_a_transform_left_behind_is_a_tensor() -> None:
    kept: list[Tensor] = []
    torch.func.grad(lambda x: kept.append(x) or x.sum())(torch.randn(5, 2, 3))
    gru = fastrnn.GRU(3, 4, backend="numba")
    outputs = [gru(x)[0] for x in (kept[0], kept[0].clone())]
    assert torch.equal(*outputs)
    gradients = [torch.autograd.grad(output.sum(), gru.weight_hh_l0)[0] for output in outputs]
    assert torch.equal(*gradients)
