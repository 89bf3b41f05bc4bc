"""The reference's recurrences: what their observers are told, and that compilers can trace them."""

from __future__ import annotations

import pytest
import torch

from fastrnn.backends import products, reference
from fastrnn.backends.layer import Gradients, Residuals
from tests.random_layers import Shape, random_layer

MASKED = Shape(steps=4, directions=2, lengths=True, resets=True)


@pytest.mark.parametrize("direction", [0, 1])
def test_a_forward_tells_of_each_step_in_its_order(direction: int) -> None:
    layer, told = random_layer("lstm", MASKED), []
    finals = reference.forward_recurrence(layer, direction, lambda t, *step: told.append((t, *step)))
    assert [t for t, *_ in told] == ([0, 1, 2, 3], [3, 2, 1, 0])[direction]
    result = reference.forward(layer, history=True, gates=True)
    for t, (h, c), kept in told:
        assert torch.equal(h, products.direction_slice(layer, direction, result.states[0])[t])
        assert torch.equal(c, products.direction_slice(layer, direction, result.states[1])[t])
        assert torch.equal(torch.cat(kept, -1), result.saved[0][direction, t])
    assert all(torch.equal(own, both[direction]) for own, both in zip(finals, result.finals, strict=True))


@pytest.mark.parametrize("direction", [0, 1])
def test_a_backward_tells_of_each_step_against_its_order(direction: int) -> None:
    layer, told = random_layer("gru", MASKED), []
    states, finals, gates = reference.forward(layer, history=True, gates=True)
    grads = Gradients([*map(torch.randn_like, states)], [*map(torch.randn_like, finals)])
    kept = reference.kept_of(layer, direction, Residuals(states, gates))
    ends = reference.backward_recurrence(layer, direction, kept, grads, lambda t, step: told.append((t, step)))
    assert [t for t, _ in told] == ([3, 2, 1, 0], [0, 1, 2, 3])[direction]
    arriving = grads.finals[0][direction]
    for t, step in told:
        assert torch.equal(step.d_after[0], arriving + products.direction_slice(layer, direction, grads.states[0])[t])
        (arriving,) = step.d_before
    assert torch.equal(arriving, ends[0])
    assert torch.equal(arriving, reference.backward(layer, Residuals(states, gates), grads).states0[0][direction])


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiler_traces_it_whole() -> None:
    layer = random_layer("gru", Shape(steps=2, reverse=True, lengths=True, resets=True))
    compiled = torch.compile(reference.forward, fullgraph=True, backend="eager")
    for got, wanted in zip(
        compiled(layer, history=True, gates=True), reference.forward(layer, history=True, gates=True), strict=True
    ):
        assert all(map(torch.equal, got, wanted))
