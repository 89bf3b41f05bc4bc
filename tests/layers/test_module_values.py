"""What modules compute, forward and backward, against torch.nn in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from tests.torch_parity import (
    BATCH,
    HIDDEN,
    INPUT,
    TIME,
    assert_close,
    assert_same_results,
    backends,
    cells,
    clone,
    gradients,
    initial_state,
    layers,
    operator_backends,
    pair,
    random,
    skip_unless_projecting,
    tensors,
)

STACKS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "no bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "three layers": {"num_layers": 3},
    "everything": {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
}
PROJECTED: dict[str, dict[str, Any]] = {
    "projected": {"proj_size": 2},
    "projected stack": {"proj_size": 2, "num_layers": 2, "bidirectional": True, "bias": False},
}
SIZES = {"typical": (TIME, BATCH), "one step": (1, BATCH), "one sequence": (TIME, 1), "one of each": (1, 1)}

stacks = pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
given_state = pytest.mark.parametrize("with_state", [False, True], ids=["no hx", "hx"])


def arguments(kind: str, module: Any, with_state: bool, steps: int = TIME, batch: int = BATCH) -> tuple[Any, ...]:
    """x, and hx if asked for, all requiring gradients, in the layout that `module` takes."""
    x = random(*((batch, steps) if module.batch_first else (steps, batch)), module.input_size, grad=True)
    return (x, initial_state(kind, module, batch, grad=True)) if with_state else (x,)


@backends
@layers
@stacks
@given_state
def test_results_and_gradients_are_torchs(backend: str, kind: str, options: dict[str, Any], with_state: bool) -> None:
    ours, theirs = pair(kind, backend=backend, **options)
    assert_same_results(ours, theirs, *arguments(kind, ours, with_state))


@backends
@pytest.mark.parametrize("options", PROJECTED.values(), ids=PROJECTED)
@given_state
def test_projected_lstms_are_torchs(backend: str, options: dict[str, Any], with_state: bool) -> None:
    skip_unless_projecting(backend)
    ours, theirs = pair("LSTM", backend=backend, **options)
    assert_same_results(ours, theirs, *arguments("LSTM", ours, with_state))


@backends
@layers
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_small_sizes_are_torchs(backend: str, kind: str, size: tuple[int, int], bidirectional: bool) -> None:
    ours, theirs = pair(kind, backend=backend, bidirectional=bidirectional)
    assert_same_results(ours, theirs, *arguments(kind, ours, True, *size))


@backends
@layers
@given_state
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch_first"])
def test_unbatched_input_is_as_torchs(backend: str, kind: str, with_state: bool, batch_first: bool) -> None:
    ours, theirs = pair(kind, backend=backend, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = random(TIME, INPUT, grad=True)
    assert_same_results(ours, theirs, x, *([initial_state(kind, ours, None, grad=True)] if with_state else []))


@backends
@layers
def test_eval_mode_has_gradients(backend: str, kind: str) -> None:
    ours, theirs = (module.eval() for module in pair(kind, backend=backend, num_layers=2, dropout=0.5))
    assert_same_results(ours, theirs, *arguments(kind, ours, True))


@operator_backends
@layers
def test_recompute_changes_no_gradient(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend, num_layers=2, bidirectional=True)
    ours.recompute = True
    assert_same_results(ours, theirs, *arguments(kind, ours, True))


@backends
@layers
def test_dropout_draws_what_torch_draws(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend, num_layers=3, dropout=0.4, bidirectional=True)
    assert_same_results_from_the_same_seed(ours, theirs, *arguments(kind, ours, True))


@operator_backends
@layers
def test_dropout_of_a_packed_sequence_draws_what_torch_draws(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend, num_layers=3, dropout=0.4, bidirectional=True)
    packed = pack_padded_sequence(random(TIME, BATCH, INPUT), [2, 5, 3], enforce_sorted=False)
    assert_same_results_from_the_same_seed(ours, theirs, packed)


def assert_same_results_from_the_same_seed(ours: Any, theirs: Any, *given: Any) -> None:
    results, state_after = [], []
    for module in (ours, theirs):
        torch.manual_seed(7)
        inputs = clone(given)
        outputs = module(*inputs)
        leaves = [tensor for tensor in tensors(inputs) if tensor.requires_grad]
        results.append([tensors(outputs), gradients(outputs, [*leaves, *module.parameters()])])
        state_after.append(random_state())
    assert_close(results[0][0], results[1][0])
    assert_close(results[0][1], results[1][1])
    assert torch.equal(*state_after)


def random_state() -> Tensor:
    """Of the generator from which tensors are drawn where the test creates them."""
    return torch.cuda.get_rng_state() if torch.get_default_device().type == "cuda" else torch.get_rng_state()


def strided(*shape: int) -> Tensor:
    """A tensor of the shape with no contiguous dimension."""
    return torch.randn(*reversed(shape), 2, dtype=torch.float64)[..., 0].permute(*reversed(range(len(shape))))


@backends
@layers
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch_first"])
def test_non_contiguous_arguments_and_parameters(backend: str, kind: str, batch_first: bool) -> None:
    ours, theirs = pair(kind, backend=backend, bidirectional=True, batch_first=batch_first)
    weight = strided(*ours.weight_hh_l0.shape)
    for module in (ours, theirs):
        module.weight_hh_l0 = torch.nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    x, h = strided(TIME, BATCH, INPUT), strided(2, BATCH, HIDDEN)
    x = x.transpose(0, 1) if batch_first else x
    results = [module(x, (h, -h) if kind == "LSTM" else h) for module in (ours, theirs)]
    assert_close(*results)
    assert_close(*(gradients(r, m.parameters()) for r, m in zip(results, (ours, theirs), strict=True)))


@backends
@layers
def test_expanded_input_and_state(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend)
    x, h = random(1, 1, INPUT).expand(TIME, BATCH, INPUT), random(1, 1, HIDDEN).expand(1, BATCH, HIDDEN)
    state = (h, h) if kind == "LSTM" else h
    assert_close(ours(x, state), theirs(x, state))


@backends
@layers
def test_empty_batch(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend, num_layers=2, bidirectional=True)
    assert_same_results(ours, theirs, *arguments(kind, ours, True, batch=0))


@operator_backends
@layers
@pytest.mark.parametrize("shape", [(0, BATCH), (0, 0), (0,)], ids=["batched", "empty batch", "unbatched"])
def test_no_steps_give_the_state_back(backend: str, kind: str, shape: tuple[int, ...]) -> None:
    """Where torch raises, fastrnn gives empty output and hx: the fold over no steps."""
    ours, theirs = pair(kind, backend=backend, num_layers=2, bidirectional=True)
    x, hx = random(*shape, INPUT, grad=True), initial_state(kind, ours, *(shape[1:] or (None,)), grad=True)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
        theirs(x, hx)
    output, state = ours(x, hx)
    assert output.shape == (*shape, 2 * HIDDEN)
    assert_close(tensors(state), tensors(hx), tolerance=0)
    assert_close(
        torch.autograd.grad([y.sum() for y in tensors(state)], tensors(hx)),
        [torch.ones_like(tensor) for tensor in tensors(hx)],
    )
    assert not any(memory_of(final) & memory_of(initial) for final in tensors(state) for initial in tensors(hx))


@backends
@layers
@stacks
@given_state
def test_no_result_shares_memory(backend: str, kind: str, options: dict[str, Any], with_state: bool) -> None:
    ours, _ = pair(kind, backend=backend, **options)
    given = arguments(kind, ours, with_state, steps=1)
    everything = [*tensors(ours(*given)), *tensors(given), *ours.parameters()]
    storages = [tensor.untyped_storage().data_ptr() for tensor in everything]
    assert len(set(storages)) == len(storages)


def memory_of(tensor: Tensor) -> set[int]:
    return {tensor.untyped_storage().data_ptr()} - {0}


@operator_backends
@cells
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("batch", [None, 0, 1, BATCH], ids=["unbatched", "empty batch", "one row", "batch"])
@given_state
def test_cells_are_torchs(backend: str, kind: str, bias: bool, batch: int | None, with_state: bool) -> None:
    ours, theirs = pair(kind, backend=backend, bias=bias)
    x = random(*([] if batch is None else [batch]), INPUT, grad=True)
    assert_same_results(ours, theirs, x, *([initial_state(kind, ours, batch, grad=True)] if with_state else []))


@cells
@given_state
def test_cells_results_share_no_memory(kind: str, with_state: bool) -> None:
    ours, _ = pair(kind)
    given = (random(BATCH, INPUT), *([initial_state(kind, ours)] if with_state else []))
    everything = [*tensors(ours(*given)), *tensors(given), *ours.parameters()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in everything}) == len(everything)
