"""What is kept for backward: computed again by activation checkpointing, and handed to the hooks for saved tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn.backends import module as backend_module
from fastrnn.binding.plans import Bound
from tests.plans import plans_of
from tests.torch_parity import BATCH, INPUT, TIME, assert_close, classes, initial_state, random, tensors

HIDDEN = 6
OPTIONS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "stack": {"num_layers": 2, "bidirectional": True},
    "recompute": {"recompute": True},
}
CASES = [
    pytest.param(backend, options, id=f"{backend} {name}")
    for backend in ("numba", "reference", "aten")
    for name, options in OPTIONS.items()
    if (backend, name) != ("aten", "recompute")  # which torch's kernels cannot
    and not (backend == "numba" and backend_module("numba").ready())
]
cases = pytest.mark.parametrize(("backend", "options"), CASES)
layers = pytest.mark.parametrize("kind", ["RNN_TANH", "GRU", "LSTM"])
remembered = pytest.mark.parametrize("remembered", [False, True], ids=["first call", "remembered"])


class Flat(nn.Module):
    """A layer whose results are tensors one after another, as reentrant checkpoints must have them."""

    def __init__(self, kind: str, backend: str, options: dict[str, Any], remembered: bool) -> None:
        super().__init__()
        ours, _, of_kind = classes(kind)
        self.layer = ours(INPUT, HIDDEN, backend=backend, dtype=torch.float64, **of_kind, **options)
        self.arguments = random(TIME, BATCH, INPUT, grad=True), initial_state(kind, self.layer, grad=True)
        if remembered:
            self()

    def forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(tensors(self.layer(*(arguments or self.arguments))))

    def gradients(self, results: tuple[Tensor, ...]) -> list[Tensor]:
        """Of everything, by `backward`, which reentrant checkpoints insist on."""
        wanted = [*tensors(self.arguments), *self.parameters()]
        for tensor in wanted:
            tensor.grad = None
        torch.autograd.backward(results, [torch.linspace(-1, 1, y.numel()).view(y.shape).to(y) for y in results])
        return [tensor.grad for tensor in wanted if tensor.grad is not None]


@contextmanager
def everything_kept_elsewhere() -> Iterator[list[Tensor]]:
    """Whatever is saved is copied by a hook and spoilt; backward gets the copies, and in the end all is put right."""
    kept: list[Tensor] = []
    copies: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        kept.append(tensor.detach())
        copies.append(tensor.detach().clone())
        return len(copies) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda index: copies[index].clone()):
        yield kept


def spoil(kept: list[Tensor]) -> list[Tensor]:
    """Fills the tensors with NaN, or True, behind autograd's back; returns what they held."""
    copies = [tensor.clone() for tensor in kept]
    for tensor in kept:
        tensor.data.fill_(math.nan if tensor.is_floating_point() else 1)
    return copies


@cases
@layers
@remembered
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_checkpoint(kind: str, backend: str, options: dict[str, Any], remembered: bool, reentrant: bool) -> None:
    """The gradients are those without it, bit by bit, also where the second of its calls is a remembered one.

    The results may differ in rounding: a reentrant checkpoint computes them without gradients, by other kernels.
    """
    module = Flat(kind, backend, options, remembered)
    results = checkpoint(module, *module.arguments, use_reentrant=reentrant)
    got = module.gradients(results)
    plain = module()
    expected = module.gradients(plain)
    assert_close(results, plain, 1e-14)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert len(got) == len(expected) == len(tensors(module.arguments)) + len(list(module.parameters()))


@cases
@layers
@remembered
def test_backward_reads_nothing_but_what_hooks_return(
    kind: str, backend: str, options: dict[str, Any], remembered: bool
) -> None:
    module = Flat(kind, backend, options, remembered)
    expected = module.gradients(module())
    with everything_kept_elsewhere() as kept:
        results = module()
    copies = spoil(kept)
    got = module.gradients(results)
    for tensor, copy in zip(reversed(kept), reversed(copies), strict=True):
        tensor.data.copy_(copy)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@layers
def test_the_remembered_call_is_meant(kind: str) -> None:
    """What the tests above call remembered is, by Numba's kernels."""
    if backend_module("numba").ready():
        pytest.skip("no Numba")
    module = Flat(kind, "numba", {}, remembered=True)
    assert type(plans_of(module.layer)[0]) is Bound


@layers
@remembered
def test_what_hooks_get_is_freed(kind: str, remembered: bool) -> None:
    """Once the hooks have taken them elsewhere, nobody holds the states and gates of all steps until backward."""
    module = Flat(kind, "auto" if remembered else "reference", {}, remembered)
    storages: dict[int, StorageWeakRef] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.data_ptr()] = StorageWeakRef(tensor.untyped_storage())
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda copy: copy):
        results = module()
    for tensor in (*results, *tensors(module.arguments), *module.parameters()):
        storages.pop(tensor.data_ptr(), None)
    assert storages or kind == "RNN_TANH"
    assert all(storage.expired() for storage in storages.values())
    assert all(gradient.isfinite().all() for gradient in module.gradients(results))


@cases
@layers
def test_saved_on_the_cpu(kind: str, backend: str, options: dict[str, Any]) -> None:
    module = Flat(kind, backend, options, remembered=False)
    expected = module.gradients(module())
    with torch.autograd.graph.save_on_cpu():
        results = module()
    assert all(torch.equal(one, other) for one, other in zip(module.gradients(results), expected, strict=True))


@layers
def test_vmap_within_a_checkpoint(kind: str) -> None:
    module = Flat(kind, "auto", {}, remembered=False)
    x, _ = module.arguments
    both = torch.stack((x, 2 * x)).detach().requires_grad_()

    def outputs(both: Tensor) -> Tensor:
        return vmap(lambda x: module.layer(x)[0])(both)

    (expected,) = torch.autograd.grad(outputs(both).square().sum(), both)
    (got,) = torch.autograd.grad(checkpoint(outputs, both, use_reentrant=False).square().sum(), both)
    assert torch.equal(got, expected)
    with everything_kept_elsewhere() as kept:
        output = outputs(both)
    arriving = 2 * output.detach()
    copies = spoil(kept)
    (got,) = torch.autograd.grad(output, both, arriving)
    for tensor, copy in zip(reversed(kept), reversed(copies), strict=True):
        tensor.data.copy_(copy)
    assert torch.equal(got, expected)


def test_double_backward_within_a_checkpoint() -> None:
    gru = fastrnn.GRU(INPUT, HIDDEN, dtype=torch.float64)
    x = random(TIME, BATCH, INPUT, grad=True)

    def penalty(x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(gru(x)[0].square().sum(), x, create_graph=True)
        return gradient.square().sum()

    wanted = [x, *gru.parameters()]
    expected = torch.autograd.grad(penalty(x), wanted)
    got = torch.autograd.grad(checkpoint(penalty, x, use_reentrant=False), wanted)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
