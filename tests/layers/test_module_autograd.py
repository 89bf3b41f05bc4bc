"""How modules stand in an autograd graph: who gets a gradient, how often, to what order, and what spoils it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.torch_parity import (
    BATCH,
    HIDDEN,
    INPUT,
    TIME,
    assert_close,
    backends,
    cells,
    error_of,
    gradients,
    initial_state,
    layers,
    modules,
    operator_backends,
    pair,
    random,
    skip_unless_projecting,
    tensors,
)


def given(kind: str, module: Any, grad: bool = False) -> tuple[Tensor, Any]:
    """An input that the module takes, of a layer or of a cell, and a state."""
    sizes = (BATCH, INPUT) if kind.endswith("CELL") else (TIME, BATCH, INPUT)
    return random(*sizes, grad=grad), initial_state(kind, module, grad=grad)


def backward(results: Any) -> None:
    sum(tensor.square().sum() for tensor in tensors(results)).backward()


def parameter_gradients(module: torch.nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


@backends
@layers
@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l1_reverse"])
def test_a_frozen_parameter_gets_no_gradient(backend: str, kind: str, frozen: str) -> None:
    ours, theirs = pair(kind, backend=backend, num_layers=2, bidirectional=True)
    x, hx = given(kind, ours)
    for module in (ours, theirs):
        getattr(module, frozen).requires_grad_(False)
        backward(module(x, hx))
    assert getattr(ours, frozen).grad is None
    assert_close(parameter_gradients(ours), parameter_gradients(theirs))


@backends
@modules
def test_only_the_input_requires_grad(backend: str, kind: str) -> None:
    ours, theirs = pair_without_parameter_gradients(kind, backend)
    x, hx = given(kind, ours)
    x.requires_grad_()
    assert_close(gradients(ours(x, hx), [x]), gradients(theirs(x, hx), [x]))


@backends
@modules
def test_only_the_state_requires_grad(backend: str, kind: str) -> None:
    ours, theirs = pair_without_parameter_gradients(kind, backend)
    x, hx = given(kind, ours, grad=True)
    x = x.detach()
    assert_close(gradients(ours(x, hx), tensors(hx)), gradients(theirs(x, hx), tensors(hx)))


@backends
def test_only_the_projection_requires_grad(backend: str) -> None:
    skip_unless_projecting(backend)
    ours, theirs = (module.requires_grad_(False) for module in pair("LSTM", backend=backend, proj_size=2))
    x, hx = given("LSTM", ours)
    results = []
    for module in (ours, theirs):
        weight = module.weight_hr_l0.requires_grad_()
        results.append(gradients(module(x, hx), [weight]))
    assert_close(*results)


@backends
@modules
def test_nothing_requires_grad(backend: str, kind: str) -> None:
    ours, _ = pair_without_parameter_gradients(kind, backend)
    assert not any(tensor.requires_grad for tensor in tensors(ours(*given(kind, ours))))


def pair_without_parameter_gradients(kind: str, backend: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    ours, theirs = pair(kind, backend=backend)
    return ours.requires_grad_(False), theirs.requires_grad_(False)


@backends
@modules
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_the_results_are_the_same(backend: str, kind: str, mode: Any) -> None:
    ours, _ = pair(kind, backend=backend)
    arguments = given(kind, ours, grad=True)
    expected = tensors(ours(*arguments))
    with mode():
        results = tensors(ours(*arguments))
    assert not any(tensor.requires_grad for tensor in results)
    assert_close(results, expected)


@operator_backends
@layers
def test_frozen_modules_keep_nothing_for_backward(backend: str, kind: str) -> None:
    ours, _ = pair_without_parameter_gradients(kind, backend)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours(*given(kind, ours))
    assert kept == []


@operator_backends
@layers
def test_recompute_keeps_fewer_bytes(backend: str, kind: str) -> None:
    if kind.startswith("RNN"):
        pytest.skip("its output alone tells the derivative: there is nothing to recompute")

    def kept_bytes(module: torch.nn.Module) -> int:
        kept: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
        ):
            results = module(*arguments)
        del results
        return sum(kept.values())

    ours, _ = pair(kind, backend=backend)
    arguments = given(kind, ours)
    full = kept_bytes(ours)
    ours.recompute = True
    assert full - kept_bytes(ours) == 4 * TIME * BATCH * HIDDEN * arguments[0].itemsize


@backends
@layers
def test_a_single_result_may_have_the_only_gradient(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend, num_layers=2, bidirectional=True)
    x, hx = given(kind, ours, grad=True)
    wanted = [x, *tensors(hx)]
    our_results, their_results = tensors(ours(x, hx)), tensors(theirs(x, hx))
    for ours_alone, theirs_alone in zip(our_results, their_results, strict=True):
        got = gradients(ours_alone, wanted, retain_graph=True, materialize_grads=True)
        assert_close(got, gradients(theirs_alone, wanted, retain_graph=True, materialize_grads=True))


@backends
@modules
def test_gradients_accumulate_over_calls(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend)
    for _ in range(2):
        arguments = given(kind, ours)
        for module in (ours, theirs):
            backward(module(*arguments))
    assert_close(parameter_gradients(ours), parameter_gradients(theirs))


@backends
@layers
def test_state_carried_between_calls_carries_gradients(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend)
    (x, hx), (y, _) = given(kind, ours), given(kind, ours)
    for module in (ours, theirs):
        backward(module(y, module(x, hx)[1]))
    assert_close(parameter_gradients(ours), parameter_gradients(theirs))


@backends
@cells
def test_cells_unroll_as_torchs(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend)
    x, hx = random(TIME, BATCH, INPUT), initial_state(kind, ours)
    for module in (ours, theirs):
        state = hx
        for row in x:
            state = module(row, state)
        backward(state)
    assert_close(parameter_gradients(ours), parameter_gradients(theirs))


@backends
@layers
def test_parameters_shared_by_two_modules_sum_both_gradients(backend: str, kind: str) -> None:
    ours, theirs = (pair(kind, HIDDEN, HIDDEN, backend=backend) for _ in range(2))
    x = random(TIME, BATCH, HIDDEN)
    for first, second in zip(ours, theirs, strict=True):
        second.load_state_dict(ours[0].state_dict())
        second.weight_hh_l0 = first.weight_hh_l0
        backward(second(first(x)[0]))
    assert_close(parameter_gradients(ours[0]), parameter_gradients(ours[1]))
    assert_close(parameter_gradients(theirs[0]), parameter_gradients(theirs[1]))


@backends
@modules
def test_second_backward_over_a_retained_graph_gives_the_same(backend: str, kind: str) -> None:
    ours, _ = pair(kind, backend=backend)
    arguments = given(kind, ours, grad=True)
    wanted = [*tensors(arguments), *ours.parameters()]
    results = ours(*arguments)
    first = gradients(results, wanted, retain_graph=True)
    assert_close(gradients(results, wanted), first, tolerance=0)


@backends
@layers
def test_second_backward_over_a_freed_graph_raises_as_torch(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend)
    x, hx = given(kind, ours)
    losses = [module(x, hx)[0].sum() for module in (ours, theirs)]
    for loss in losses:
        loss.backward()
    expected, got = error_of(losses[1].backward), error_of(losses[0].backward)
    assert type(got) is type(expected)
    assert str(got).startswith(str(expected))  # fastrnn's nodes add to it, see test_hints.py


@operator_backends
@layers
def test_changing_the_output_in_place_raises_at_backward(backend: str, kind: str) -> None:
    ours, _ = pair(kind, backend=backend)
    output, _ = ours(*given(kind, ours))
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@layers
def test_changing_the_output_in_place_is_as_torchs_with_torchs_kernels(kind: str) -> None:
    """They keep no output of a float64 layer for backward, so that changing it does no harm."""
    ours, theirs = pair(kind, backend="aten")
    x, hx = given(kind, ours)
    for module in (ours, theirs):
        module(x, hx)[0].mul_(2).sum().backward()
    assert_close(parameter_gradients(ours), parameter_gradients(theirs))


@backends
@layers
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
def test_changing_a_weight_in_place_raises_at_backward(backend: str, kind: str, name: str) -> None:
    ours, _ = pair(kind, backend=backend)
    x, hx = given(kind, ours, grad=True)
    output, _ = ours(x, hx)
    with torch.no_grad():
        getattr(ours, name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@backends
@layers
def test_changing_the_input_in_place_raises_at_backward(backend: str, kind: str) -> None:
    ours, _ = pair(kind, backend=backend)
    x, hx = given(kind, ours)
    output, _ = ours(x, hx)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@backends
@layers
def test_changing_a_final_state_in_place_leaves_the_gradients_right(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend)
    x, hx = given(kind, ours)
    for module in (ours, theirs):
        output, state = module(x, hx)
        with torch.no_grad():
            for tensor in tensors(state):
                tensor.zero_()
        output.sum().backward()
    assert_close(parameter_gradients(ours), parameter_gradients(theirs))


@backends
@layers
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one layer", "stack"])
def test_double_backward_is_torchs(backend: str, kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(kind, backend=backend, **options)
    arguments = given(kind, ours, grad=True)
    assert_close(second_gradients(ours, arguments), second_gradients(theirs, arguments))


def test_double_backward_of_a_projected_lstm_is_torchs() -> None:
    ours, theirs = pair("LSTM", proj_size=2, backend="reference")
    arguments = given("LSTM", ours, grad=True)
    assert_close(second_gradients(ours, arguments), second_gradients(theirs, arguments))


@cells
def test_double_backward_of_cells_is_torchs(kind: str) -> None:
    ours, theirs = pair(kind, backend="reference")
    arguments = given(kind, ours, grad=True)
    assert_close(second_gradients(ours, arguments), second_gradients(theirs, arguments))


def second_gradients(module: torch.nn.Module, arguments: Any) -> list[Tensor | None]:
    """Gradients of the squared norm of all first gradients."""
    wanted = [*tensors(arguments), *module.parameters()]
    first = gradients(module(*arguments), wanted, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in first if gradient is not None)
    return list(torch.autograd.grad(penalty, wanted, allow_unused=True, materialize_grads=True))
