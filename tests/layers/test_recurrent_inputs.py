"""Inputs of the steps: every form that broadcasts, with its gradients, and what they hold where nothing is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from tests.layers.plain_loops import by_loops, inputs_of, recurrent, single, states_of
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, gradients, random, tensors

GROUPS = 4
SHAPES = [
    (),
    (HIDDEN,),
    (1,),
    (BATCH, 1),
    (TIME, 1, 1),
    (TIME, BATCH, HIDDEN),
    (GROUPS, 1, 1, HIDDEN),
    (GROUPS, TIME, BATCH, HIDDEN),
]
"""Of (N, T, B, H)."""
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def arguments(**options: Any) -> tuple[Any, Tensor, Any]:
    module = recurrent("zoneout_lstm", num_layers=2, bidirectional=True, **options)
    return module, random(TIME, BATCH, INPUT, grad=True), states_of(module)


def given(*shape: int) -> dict[str, Tensor]:
    """One input in this shape, the other whole."""
    whole = torch.rand(GROUPS, TIME, BATCH, HIDDEN).double()
    return {"keep_h": torch.rand(shape).double().requires_grad_(), "keep_c": whole.requires_grad_()}


def expanded(inputs: dict[str, Tensor]) -> list[Tensor]:
    return [value.expand(GROUPS, TIME, BATCH, HIDDEN) for value in inputs.values()]


def turned(value: Tensor) -> Tensor:
    """As a module with batch_first takes it: with the axes of T and B, as far as there are any, exchanged."""
    value = value if value.dim() != 2 else value[None]
    return value if value.dim() < 3 else value.transpose(-3, -2)


@shapes
def test_what_broadcasts_is_taken(shape: tuple[int, ...]) -> None:
    module, x, states = arguments()
    inputs = given(*shape)
    got = tensors(module(x, states, **inputs))
    output, finals, _ = by_loops(module, x, states, inputs=expanded(inputs))
    assert_close(got, [output, *finals])
    wanted = [*inputs.values(), x, *states, *module.parameters()]
    assert_close(gradients(got, wanted), gradients([output, *finals], wanted))


@shapes
def test_with_batch_first_it_lies_as_the_input_does(shape: tuple[int, ...]) -> None:
    module, x, states = arguments(batch_first=True)
    inputs = given(*shape)
    output, finals, _ = by_loops(module, x, states, inputs=expanded(inputs))
    got = module(x.transpose(0, 1), states, **{name: turned(value) for name, value in inputs.items()})
    assert_close(tensors(got), [output.transpose(0, 1), *finals])


@pytest.mark.parametrize("shape", [(), (HIDDEN,), (TIME, 1), (TIME, HIDDEN), (GROUPS, 1, 1)], ids=str)
def test_unbatched_there_is_no_batch(shape: tuple[int, ...]) -> None:
    module, x, states = arguments()
    inputs = {name: torch.rand(shape).double().requires_grad_() for name in module.cell.inputs}
    whole = [value.expand(GROUPS, TIME, HIDDEN).unsqueeze(2) for value in inputs.values()]
    one = [state[:, :1] for state in states]
    output, finals, _ = by_loops(module, x[:, :1], one, inputs=whole)
    got = module(x[:, 0], tuple(state[:, 0] for state in states), **inputs)
    assert_close(tensors(got), [output[:, 0], *[final[:, 0] for final in finals]])


@pytest.mark.parametrize("shape", [(), (1,), (HIDDEN,), (BATCH, 1), (BATCH, HIDDEN)], ids=str)
def test_a_single_step_has_no_time(shape: tuple[int, ...]) -> None:
    cell = single("zoneout_lstm")
    x, states = random(BATCH, INPUT), states_of(cell, BATCH, HIDDEN)
    inputs = {name: torch.rand(shape).double().requires_grad_() for name in cell.cell.inputs}
    whole = {name: value.expand(BATCH, HIDDEN) for name, value in inputs.items()}
    got, expected = tensors(cell(x, states, **inputs)), tensors(cell(x, states, **whole))
    assert_close(got, expected)
    assert_close(gradients(got, inputs.values()), gradients(expected, inputs.values()))
    if len(shape) < 2:
        row = cell(x[0], tuple(state[0] for state in states), **inputs)
        assert_close(tensors(row), [after[0] for after in expected])


@pytest.mark.parametrize("sort", [True, False], ids=["in order", "in any order"])
def test_of_packed_sequences_they_are_padded_and_in_the_callers_order(sort: bool) -> None:
    module, x, states = arguments()
    inputs, lengths = given(TIME, BATCH, HIDDEN), torch.tensor([5, 3, 2] if sort else [2, 5, 3])
    output, finals = module(pack_padded_sequence(x, lengths, enforce_sorted=sort), states, **inputs)
    padded, expected = module(x, states, lengths=lengths, **inputs)
    assert_close(tensors(finals), tensors(expected))
    assert_close(output.data, pack_padded_sequence(padded, lengths, enforce_sorted=sort).data)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_nothing_beyond_the_lengths_is_read(recompute: bool) -> None:
    module, x, states = arguments(recompute=recompute)
    lengths = torch.tensor([5, 0, 3])
    dead = (torch.arange(TIME)[:, None] >= lengths)[..., None]
    inputs = inputs_of(module)
    spoilt = {name: value.detach().masked_fill(dead, torch.nan).requires_grad_() for name, value in inputs.items()}
    unread = x.detach().masked_fill(dead, torch.nan).requires_grad_()
    clean, got = module(x, states, lengths=lengths, **inputs), module(unread, states, lengths=lengths, **spoilt)
    assert_close(tensors(got), tensors(clean))
    others = [*states, *module.parameters()]
    found = gradients(got, [unread, *spoilt.values(), *others])
    assert_close(found, gradients(clean, [x, *inputs.values(), *others]))
    assert all(d[:, dead[..., 0]].count_nonzero() == 0 for d in found[1:3])  # type: ignore[index]


def test_frozen_inputs_and_weights_have_no_gradients() -> None:
    module, x, states = arguments()
    inputs = {name: value.detach() for name, value in inputs_of(module).items()}
    assert len(gradients(module(x, states, **inputs), [x, *module.parameters()])) == 1 + len([*module.parameters()])
    module.requires_grad_(False)
    value = inputs["keep_h"].requires_grad_()
    (d,) = gradients(module(x.detach(), **inputs), [value])
    assert d is not None
    assert d.count_nonzero() > 0


def test_what_is_kept_wholly_stays() -> None:
    module, x, states = arguments()
    ones = torch.ones(()).double()
    assert_close(tensors(module(x, states, keep_h=ones, keep_c=ones)[1]), list(states))
