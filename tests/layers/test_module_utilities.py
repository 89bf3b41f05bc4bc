"""Modules under torch.nn.utils, torch.func, hooks and optimizers: whatever stands in for a parameter takes effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn
from tests.torch_parity import (
    BATCH,
    HIDDEN,
    INPUT,
    TIME,
    assert_close,
    assert_same_results,
    initial_state,
    layers,
    modules,
    pair,
    random,
    tensors,
)


class Doubled(nn.Module):
    """The simplest parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def old_weight_norm(module: nn.Module, name: str) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(module, name)


def prune_by_magnitude(module: nn.Module, name: str) -> None:
    prune.l1_unstructured(module, name, amount=0.3)


def prune_randomly(module: nn.Module, name: str) -> None:
    prune.random_unstructured(module, name, amount=0.5)


def prune_rows(module: nn.Module, name: str) -> None:
    prune.ln_structured(module, name, amount=0.3, n=2, dim=0)


CHANGES: list[Callable[[nn.Module, str], Any]] = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    old_weight_norm,
    nn.utils.spectral_norm,
    prune_by_magnitude,
    prune_rows,
    prune_randomly,
]
"""How torch makes a parameter a function of others. Norms are compared in eval mode: in training, spectral norm
improves its estimate each time that the weight is read, which torch's modules do more than once a call."""


def name_of(change: Callable[..., Any]) -> str:
    return f"{change.__module__.rpartition('.')[2]}.{change.__name__}"


SEED = 3
"""Some changes draw random numbers."""

SCALE = 0.75
"""Of the underlying parameters after the change: a weight that is not computed afresh shows."""


def sample(kind: str) -> tuple[Tensor, Any]:
    """x and a nonzero hx, without which a cell's recurrent weights would have no effect."""
    rows = [BATCH] if kind.endswith("CELL") else [TIME, BATCH]
    return random(*rows, INPUT, grad=True), initial_state(kind, pair(kind)[0])


def pair_called_before(kind: str) -> tuple[nn.Module, nn.Module]:
    """Both modules after a call, so that whatever they keep of their parameters is out of date from now on."""
    ours, theirs = pair(kind)
    ours(*sample(kind)), theirs(*sample(kind))
    return ours, theirs


def recurrent_weight(kind: str) -> str:
    return "weight_hh" if kind.endswith("CELL") else "weight_hh_l0"


@modules
@pytest.mark.parametrize("change", CHANGES, ids=name_of)
def test_changed_weights_take_effect_in_value_and_gradient(kind: str, change: Callable[[nn.Module, str], Any]) -> None:
    ours, theirs = pair_called_before(kind)
    for module in (ours, theirs):
        torch.manual_seed(SEED)
        change(module.eval(), recurrent_weight(kind))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(SCALE)
    assert_same_results(ours, theirs, *sample(kind))


@modules
def test_parametrized_caching_and_removal(kind: str) -> None:
    ours, theirs = pair_called_before(kind)
    for module in (ours, theirs):
        parametrize.register_parametrization(module, recurrent_weight(kind), Doubled())
    arguments = sample(kind)
    with parametrize.cached():
        assert_same_results(ours, theirs, *arguments)
    for module in (ours, theirs):
        parametrize.remove_parametrizations(module, recurrent_weight(kind))
    assert_same_results(ours, theirs, *arguments)


@layers
def test_pruning_made_permanent(kind: str) -> None:
    ours, theirs = pair_called_before(kind)
    for module in (ours, theirs):
        prune_by_magnitude(module, "weight_hh_l0")
        prune.remove(module, "weight_hh_l0")
    assert_same_results(ours, theirs, *sample(kind))


@modules
def test_replaced_parameters_take_effect(kind: str) -> None:
    ours, theirs = pair_called_before(kind)
    name = recurrent_weight(kind)
    weight = nn.Parameter(torch.randn_like(getattr(ours, name)))
    for module in (ours, theirs):
        setattr(module, name, weight)
    assert_same_results(ours, theirs, *sample(kind))


@modules
def test_functional_call_takes_the_given_parameters(kind: str) -> None:
    ours, theirs = pair_called_before(kind)
    x, hx = sample(kind)
    values = {name: torch.randn_like(p).requires_grad_() for name, p in ours.named_parameters()}
    results = [tensors(torch.func.functional_call(module, values, (x, hx))) for module in (ours, theirs)]
    assert_close(*results)
    assert_close(*(torch.autograd.grad(r[0].sum(), [x, *values.values()]) for r in results))


@modules
@pytest.mark.parametrize(
    "write",
    [
        lambda parameter, value: parameter.data.copy_(value),
        lambda parameter, value: setattr(parameter, "data", value.clone()),
        lambda parameter, value: torch.no_grad()(parameter.copy_)(value),
        lambda parameter, value: torch.inference_mode()(parameter.copy_)(value),
    ],
    ids=["data.copy_", "data=", "no_grad copy_", "inference_mode copy_"],
)
def test_values_written_by_any_route_are_seen(kind: str, write: Callable[[Tensor, Tensor], Any]) -> None:
    """Also where a backend keeps packed weights between calls without gradients."""
    ours, theirs = pair(kind)
    arguments = sample(kind)
    with torch.no_grad():
        ours(*arguments)
    value = torch.randn_like(getattr(ours, recurrent_weight(kind)))
    for module in (ours, theirs):
        write(getattr(module, recurrent_weight(kind)), value)
    with torch.no_grad():
        assert_close(tensors(ours(*arguments)), tensors(theirs(*arguments)))


@modules
def test_parameters_become_a_vector_and_back(kind: str) -> None:
    ours, theirs = pair_called_before(kind)
    vector = torch.randn_like(nn.utils.parameters_to_vector(ours.parameters()))
    for module in (ours, theirs):
        nn.utils.vector_to_parameters(vector, module.parameters())
    assert_same_results(ours, theirs, *sample(kind))


@modules
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam], ids=lambda optimizer: optimizer.__name__)
def test_clipped_optimizer_steps_lead_to_the_same_parameters(kind: str, optimizer: Any) -> None:
    ours, theirs = pair(kind)
    arguments = sample(kind)
    for module in (ours, theirs):
        steps = optimizer(module.parameters(), lr=0.1)
        for _ in range(3):
            steps.zero_grad()
            tensors(module(*arguments))[0].square().sum().backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            steps.step()
    # Adam divides by gradients near zero, which enlarges rounding.
    assert_close(list(ours.parameters()), list(theirs.parameters()), tolerance=1e-7)


@modules
def test_hooks_see_what_torchs_see(kind: str) -> None:
    def shapes(value: Any) -> list[torch.Size]:
        return [tensor.shape for tensor in tensors(value)]

    def record(module: nn.Module) -> list[Any]:
        seen: list[Any] = []
        module.register_forward_pre_hook(lambda _, inputs: seen.append(shapes(inputs)))
        module.register_forward_hook(lambda _, inputs, outputs: seen.append((shapes(inputs), shapes(outputs))))
        module.register_full_backward_hook(lambda _, inputs, outputs: seen.append((shapes(inputs), shapes(outputs))))
        sum(tensor.sum() for tensor in tensors(module(*arguments))).backward()
        return seen

    arguments = sample(kind)
    ours, theirs = pair(kind)
    assert record(ours) == record(theirs)


@layers
def test_tensor_hooks_scale_gradients(kind: str) -> None:
    ours, theirs = pair(kind)
    for module in (ours, theirs):
        module.weight_hh_l0.register_hook(lambda gradient: 3 * gradient)
    assert_same_results(ours, theirs, *sample(kind))


class Tagger(nn.Module):
    """Embedding, a recurrent layer and a linear one: a usual small model."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, INPUT, dtype=torch.float64)
        self.recurrent = recurrent
        self.out = nn.Linear(HIDDEN, 2, dtype=torch.float64)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.recurrent(self.embedding(tokens))[0])


@layers
def test_works_within_a_model(kind: str) -> None:
    ours, theirs = (Tagger(module) for module in pair(kind))
    ours.load_state_dict(theirs.state_dict())
    assert_same_results(ours, theirs, torch.randint(7, (TIME, BATCH)))
    assert str(ours.apply(lambda module: None)) == str(theirs)


@layers
def test_nested_zero_grad_and_freezing(kind: str) -> None:
    ours, _ = (Tagger(module) for module in pair(kind))
    ours.recurrent.requires_grad_(False)
    ours(torch.randint(7, (TIME, BATCH))).sum().backward()
    assert all(parameter.grad is None for parameter in ours.recurrent.parameters())
    assert ours.embedding.weight.grad is not None
    ours.zero_grad()
    assert ours.embedding.weight.grad is None


@modules
def test_shared_memory_keeps_results(kind: str) -> None:
    ours, theirs = pair(kind)
    assert ours.share_memory() is ours
    assert all(parameter.is_shared() for parameter in ours.parameters())
    assert_same_results(ours, theirs, *sample(kind))


@layers
def test_packing_utilities_keep_their_types(kind: str) -> None:
    ours, _ = pair(kind)
    packed = nn.utils.rnn.pack_sequence([random(4, INPUT), random(2, INPUT)])
    output, _ = ours(packed)
    assert isinstance(output, nn.utils.rnn.PackedSequence)
    assert [len(sequence) for sequence in nn.utils.rnn.unpack_sequence(output)] == [4, 2]


def test_use_backend_applies_to_modules_without_their_own() -> None:
    ours, theirs = pair("GRU")
    arguments = sample("GRU")
    with fastrnn.use_backend("reference"):
        assert fastrnn.explain(ours, *arguments).layers == ["reference"]
        assert_close(ours(*arguments), theirs(*arguments))
