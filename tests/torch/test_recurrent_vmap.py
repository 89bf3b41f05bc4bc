"""Modules of any cell under vmap: members, samples and ensembles, by operators and by the reference's operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

import fastrnn
from fastrnn import backends, ops, transforms
from fastrnn.binding import bind
from fastrnn.cells import Step, mix, sigmoid, tanh
from tests.cells.zoo import ZOO
from tests.layers.plain_loops import as_hx, inputs_of, recurrent, single, states_of
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, random, tensors

cells = pytest.mark.parametrize("name", ["peephole_lstm", "slstm", "indrnn", "star", "zoneout_lstm", "scaled_residual"])


@pytest.fixture(params=["reference", "auto"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By the reference's operations, which transforms take apart; or by operators, whatever computes these: here it is
    the reference, so that no kernel needs to be compiled."""
    for place in (backends, bind, ops):
        monkeypatch.setattr(place, "operator_backend", lambda *_: "reference")
    return str(request.param)


MEMBERS = 3


@cells
def test_vmap_over_arguments(name: str, backend: str) -> None:
    """One at a time and all together: each member's results are those of a call of its own."""
    module = recurrent(name, backend=backend, bidirectional=True)

    def many(value: Tensor) -> Tensor:
        return (value.detach() + 0.1 * torch.rand(MEMBERS, *[1] * value.dim()).double()).clamp(min=-1, max=2)

    x, states, inputs = random(TIME, BATCH, INPUT), states_of(module), inputs_of(module)
    single_ones = [x, *states, *inputs.values()]

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        own, fed = given[1 : 1 + len(states)], dict(zip(inputs, given[1 + len(states) :], strict=True))
        return tuple(tensors(module(given[0], as_hx(own), lengths=[5, 2, 3], **fed)))

    chosen = [range(len(single_ones)), [0], [1], *([[len(single_ones) - 1]] if inputs else [])]
    for places in chosen:
        dims = tuple(0 if place in places else None for place in range(len(single_ones)))
        given = [many(v) if dim == 0 else v.detach() for v, dim in zip(single_ones, dims, strict=True)]
        each_own = [[v[k] if dim == 0 else v for v, dim in zip(given, dims, strict=True)] for k in range(MEMBERS)]
        expected = [torch.stack(parts) for parts in zip(*(run(*own) for own in each_own), strict=True)]
        assert_close(vmap(run, dims)(*given), expected)

        def loss(*own: Tensor) -> Tensor:
            return sum(y.square().sum() for y in run(*own))  # type: ignore[return-value]

        wanted = tuple(range(len(given)))
        found = vmap(grad(loss, wanted), dims)(*given)
        one_by_one = [grad(loss, wanted)(*own) for own in each_own]
        assert_close(found, [torch.stack(parts) for parts in zip(*one_by_one, strict=True)])


@cells
def test_gradients_of_each_sample(name: str, backend: str) -> None:
    module = recurrent(name, backend=backend, num_layers=2, bidirectional=True)
    weights = {key: value.detach() for key, value in module.named_parameters()}
    x, inputs = (
        random(MEMBERS, TIME, INPUT),
        {k: v.detach() for k, v in inputs_of(module, MEMBERS, 4, TIME, HIDDEN).items()},
    )
    resets = torch.rand(MEMBERS, TIME) < 0.3
    lengths = torch.tensor([5, 3, 4])

    def loss(weights: Any, x: Tensor, inputs: Any, lengths: Tensor, resets: Tensor) -> Tensor:
        output, finals = functional_call(module, weights, (x,), {**inputs, "lengths": lengths, "resets": resets})
        return sum(y.square().sum() for y in (output, *tensors(finals)))  # type: ignore[return-value]

    found = vmap(grad(loss, (0, 1, 2)), (None, 0, 0, 0, 0))(weights, x, inputs, lengths, resets)
    for k in range(MEMBERS):
        own = x[k], {key: value[k] for key, value in inputs.items()}, lengths[k], resets[k]
        d_weights, d_x, d_inputs = grad(loss, (0, 1, 2))(weights, *own)
        assert_close([d[k] for d in found[0].values()], [*d_weights.values()])
        assert_close(found[1][k], d_x)
        assert_close([d[k] for d in found[2].values()], [*d_inputs.values()])


@cells
def test_ensembles(name: str, backend: str) -> None:
    modules = [recurrent(name, backend=backend) for _ in range(MEMBERS)]
    weights, buffers = stack_module_state(modules)  # type: ignore[arg-type]
    x, inputs = random(TIME, BATCH, INPUT), inputs_of(modules[0])

    def run(weights: Any, buffers: Any) -> tuple[Tensor, ...]:
        return tuple(tensors(functional_call(modules[0], (weights, buffers), (x,), inputs)))

    results = [tensors(module(x, **inputs)) for module in modules]
    assert_close(vmap(run)(weights, buffers), [torch.stack(parts) for parts in zip(*results, strict=True)])


@cells
def test_single_steps_under_vmap(name: str, backend: str) -> None:
    cell = single(name, backend=backend)
    x, states, inputs = random(MEMBERS, INPUT), states_of(cell, MEMBERS, HIDDEN), inputs_of(cell, MEMBERS, HIDDEN)
    expected = tensors(cell(x, as_hx(states), **inputs))
    got = vmap(lambda x, hx, inputs: cell(x, hx, **inputs))(x, as_hx(states), inputs)
    assert_close(tensors(got), expected)


@fastrnn.cell
def gated_product(x: Any, u: Any, h: Any, *, p: Any, q: Any, k: Step) -> Any:
    """Of whose blocks some are the state's alone, and whose parameters need those of both."""
    f = sigmoid(x.f + u.f)
    n = tanh(x.n + f * (u.n * p + q))
    return mix(f * k, n, h)


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("cell", [gated_product, ZOO["peephole_lstm"], ZOO["indrnn"]], ids=lambda cell: cell.name)
def test_gradients_of_each_sample_take_one_backward(
    cell: Any, lengths: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the cell's own parameters and of the steps' inputs, too."""
    module = fastrnn.Recurrent(cell, INPUT, HIDDEN, bidirectional=True, dtype=torch.float64, backend=backend)
    weights = {key: value.detach() for key, value in module.named_parameters()}
    x, ends = random(MEMBERS, TIME, INPUT), torch.tensor([5, 3, 0])
    inputs = {key: value.detach() for key, value in inputs_of(module, MEMBERS, 2, TIME, HIDDEN).items()}
    calls: list[int] = []
    usual = ops.backward_below_autograd

    def counted(layer: Any, *arguments: Any) -> Any:
        calls.append(layer.x.shape[1])
        return usual(layer, *arguments)

    def loss(weights: Any, x: Tensor, inputs: Any, end: Tensor) -> Tensor:
        options = {"lengths": end} if lengths else {}
        output, _ = functional_call(module, weights, (x,), {**inputs, **options})
        return output.square().sum()

    with monkeypatch.context() as patch:
        patch.setattr(transforms.ops, "backward_below_autograd", counted)
        found = vmap(grad(loss, (0, 1, 2)), (None, 0, 0, 0))(weights, x, inputs, ends)
    assert calls == ([MEMBERS] if backend == "auto" else [])
    for k in range(MEMBERS):
        own = {key: value[k] for key, value in inputs.items()}
        d_weights, d_x, d_inputs = grad(loss, (0, 1, 2))(weights, x[k], own, ends[k])
        assert_close([d[k] for d in found[0].values()], [*d_weights.values()])
        assert_close(found[1][k], d_x)
        assert_close([d[k] for d in found[2].values()], [*d_inputs.values()])
