"""Cells that are not built in: what surrounds a step asks their contract alone, of any gates and states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrnn import batching, checks, operator_checks
from fastrnn.backends import aten, cost, preference_cuda, products, reference
from fastrnn.backends.layer import Gradients, Layer, Residuals
from fastrnn.backends.stack import Stack
from fastrnn.binding.bind import results
from fastrnn.binding.configuration import Configuration
from fastrnn.binding.training_step import _columns, _taken
from fastrnn.cells import CELLS, Cell
from fastrnn.probe_figures import Thresholds, of_backward, of_forward
from tests.cells.zoo import ZOO
from tests.random_layers import Shape, any_layer, cast, random_layer

MASKED = Shape(steps=5, batch=4, hidden=3, directions=2, lengths=True, resets=True)
others = pytest.mark.parametrize("name", ZOO)
every = pytest.mark.parametrize("cell", (CELLS | ZOO).values(), ids=lambda cell: cell.name)


def key(name: str) -> str:
    """By which layers know the cell."""
    return (CELLS | ZOO)[name].key


def layer_of(name: str, shape: Shape) -> Layer:
    """With gradients."""
    return cast(any_layer((CELLS | ZOO)[name], shape), torch.float64)


def like(tensors: list[Tensor]) -> list[Any]:
    return [torch.randn_like(tensor) for tensor in tensors]


def test_the_zoo_has_what_the_built_in_cells_have_not() -> None:
    cells = [*ZOO.values()]
    assert any(cell.u_gates and cell.x_gates != cell.u_gates for cell in cells)
    assert any(not cell.u_gates for cell in cells)
    assert any(len(cell.states) > 2 for cell in cells)


@others
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "recomputed"])
def test_the_references_backward_is_autograds(name: str, kept: bool) -> None:
    """In two directions, with lengths and resets, from gradients of every state of every step and of the last."""
    layer = layer_of(name, MASKED)
    operator_checks.forward(layer, "reference")
    result = reference.forward(layer, history=True, gates=kept)
    assert len(result.saved) == (kept and len(ZOO[name].saved) > 0)
    d_states, d_finals = like(result.states), like(result.finals)
    floating = [tensor for tensor in layer.tensors() if tensor.is_floating_point()]
    pairs = zip(result.states + result.finals, d_states + d_finals, strict=True)
    outputs, cotangents = zip(*[(y, d) for y, d in pairs if y.requires_grad], strict=True)  # slstm's m needs none
    expected = torch.autograd.grad(outputs, floating, cotangents, materialize_grads=True)

    gates = [saved.detach() for saved in result.saved]
    with torch.no_grad():
        states = [state.detach() for state in result.states]
        got = reference.backward(layer, Residuals(states, gates), Gradients(d_states, d_finals))
    found = [tensor for group in got for tensor in group]
    assert [d.shape for d in found] == [tensor.shape for tensor in floating]
    for d, wanted in zip(found, expected, strict=True):
        assert wanted.isfinite().all()
        torch.testing.assert_close(d, wanted)


@others
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_stack_of_layers_is_bound_and_trained(name: str, recompute: bool) -> None:
    """With the states of every step, by the layers' own derivatives, against autograd through the same layers."""
    one, two = (layer_of(name, replace(MASKED, inputs=inputs)) for inputs in (4, 6))
    weights = [
        [layer.w_ih[k], layer.w_hh[k][0], *layer.biases[2 * k : 2 * k + 2], *layer.parameters_of(k)]
        for layer in (one, two)
        for k in range(2)
    ]
    hx: Any = tuple(torch.cat(pair) for pair in zip(one.states0, two.states0, strict=True))
    configuration = Configuration(name.upper(), key(name), bidirectional=True, recompute=recompute, backend="reference")
    hx = hx if len(hx) > 1 else hx[0]
    inputs = [torch.cat(pair) for pair in zip(one.inputs, two.inputs, strict=True)]
    output, finals, histories = results(configuration, weights, one.x, hx, one.lengths, one.resets, True, None, inputs)

    first = reference.forward(one, history=True, gates=False)
    second = reference.forward(
        replace(two, x=first.states[0], lengths=one.lengths, resets=one.resets), history=True, gates=False
    )
    torch.testing.assert_close(output, second.states[0])
    for final, below, above in zip(finals, first.finals, second.finals, strict=True):
        torch.testing.assert_close(final, torch.cat((below, above)))
    assert [history.shape for history in histories] == [(4, 5, 4, 3)] * len(ZOO[name].states)
    wanted = [
        tensor for layer in (one, two) for tensor in layer.tensors() if tensor.requires_grad and tensor is not two.x
    ]
    d = torch.randn_like(output)
    for got, expected in zip(
        torch.autograd.grad(output, wanted, d, materialize_grads=True),
        torch.autograd.grad(second.states[0], wanted, d, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_torch_has_no_kernels_of_other_cells() -> None:
    layer = layer_of("cifg", Shape())
    stack = Stack(key("cifg"), layer.x, tuple(layer.states0), [[layer.w_ih[0], layer.w_hh[0][0], *layer.biases]])
    assert aten.supports(stack) == "torch has no kernels for cifg"


@others
def test_weights_of_other_rows_are_refused(name: str) -> None:
    layer = layer_of(name, Shape())
    rows = (len(ZOO[name].u_gates) + 1) * layer.hidden_size
    with pytest.raises(RuntimeError, match=rf"{name}: the weights of layer 0 must have shapes"):
        operator_checks.forward(replace(layer, w_hh=[layer.w_hh[0].new_zeros(1, rows, layer.hidden_size)]), "reference")
    short = [layer.biases[0], layer.biases[1].new_zeros(rows)]
    with pytest.raises(RuntimeError, match=rf"{name}: the weights of layer 0 must have shapes"):
        operator_checks.forward(replace(layer, biases=short), "reference")


@pytest.mark.parametrize("name", ["gru", *(name for name, c in ZOO.items() if {*c.parameters} <= {*c.outside})])
def test_gradients_of_each_member_from_one_backward(name: str) -> None:
    members, size = 2, 2
    layer = layer_of(name, MASKED)
    result = reference.forward(layer, history=True, gates=True)
    kept = Residuals(result.states, result.saved)
    grads = Gradients(like(result.states), like(result.finals), need_x=False)
    with torch.no_grad():
        cut = batching.cut_before_input(layer)
        (dgx,) = reference.backward(cut, kept, replace(grads, need_x=True, need_weights=False)).x
        x = products.masked_x(layer).unflatten(1, (members, size)).movedim(1, 0)
        found = batching.weight_gradients(layer, x, dgx, result.states)
        for index in range(members):
            own = slice(index * size, (index + 1) * size)
            one = replace(
                layer,
                x=layer.x[:, own],
                states0=[state[:, own] for state in layer.states0],
                lengths=None if layer.lengths is None else layer.lengths[own],
                resets=None if layer.resets is None else layer.resets[:, own],
                inputs=[value[:, :, own] for value in layer.inputs],
            )
            its = Residuals([state[:, own] for state in kept.states], [saved[:, :, own] for saved in kept.gates])
            arriving = [[d[:, own] for d in group if d is not None] for group in (grads.states, grads.finals)]
            expected = reference.backward(one, its, Gradients(*arriving, need_x=False))
            groups = expected.w_ih, expected.w_hh, expected.biases, expected.parameters
            for group, wanted in zip(found, groups, strict=True):
                for d, right in zip(group, wanted, strict=True):
                    torch.testing.assert_close(d[index], right)


@every
def test_one_backward_is_for_cells_whose_gradients_follow_from_those_of_x(cell: Cell) -> None:
    """And not for one of whose parameters only the recurrence can tell."""
    layer = random_layer(cell.key, Shape(batch=1))
    assert batching.prefers_one_backward(layer) is (cell.name != "scaled_residual")


@every
def test_a_cells_step_takes_the_gradients_of_products_from_its_blocks(cell: Cell) -> None:
    blocks = torch.randn(2, len(cell.blocks), 3)
    for runs, places in ((cell.x_runs, cell.dgx), (cell.u_runs, cell.dgh)):
        expected = cell.of_gates(blocks, places).flatten(1)
        torch.testing.assert_close(_taken(blocks.flatten(1), _columns(runs, 3)), expected)


@pytest.mark.parametrize("name", ["cifg", "star", "slstm"])
def test_a_probe_tells_the_whole_gradient_of_every_state(name: str) -> None:
    layer = layer_of(name, Shape(steps=4, hidden=3))
    states, after = tuple(state[0] for state in layer.states0), []
    for gx in products.input_product(layer, 0, torch.float64):
        states = reference.one_step(layer, 0, gx, states, None, None)[0]
        for state in states:
            if state.requires_grad:
                state.retain_grad()
        after.append(states)
    histories = [torch.stack(rows).detach() for rows in zip(*after, strict=True)]
    d_h, d_finals = (
        torch.randn_like(histories[0]),
        [torch.randn(1, *history.shape[1:]).double() for history in histories],
    )
    loss = sum((step[0] * d).sum() for step, d in zip(after, d_h, strict=True))
    (loss + sum((s * d[0]).sum() for s, d in zip(states, d_finals, strict=True))).backward()  # type: ignore[union-attr]
    d_states: list[Any] = [d_h, *[None] * (len(states) - 1)]
    with torch.no_grad():
        norms, gains = of_backward(layer, histories, d_states, d_finals)
    assert tuple(norms) == ZOO[name].states
    assert gains.isfinite().all()
    for index, state in enumerate(ZOO[name].states):
        if after[0][index].requires_grad:  # slstm's m needs none
            expected = torch.stack([step[index].grad.norm() for step in after])  # type: ignore[union-attr]
            torch.testing.assert_close(norms[state][0], expected)


def test_a_probe_tells_zero_from_saturated() -> None:
    layer = random_layer(key("ligru"), Shape())
    silent = replace(layer, w_ih=[torch.zeros_like(layer.w_ih[0])], biases=[], states0=[layer.states0[0] * 0])
    histories = reference.forward(silent, history=True, gates=False).states
    figures = of_forward("LiGRU", silent, histories, Thresholds((0.6, 0.95), 0.95))
    assert "100% of n are zero" in figures.summary()
    assert "100% of z are saturated" in figures.summary()
    assert figures.rows == ["layer 0"]


def test_how_many_states_are_expected_is_told() -> None:
    state = torch.zeros(1, 2, 3)
    with pytest.raises(RuntimeError, match="slstm expects 4 hidden states"):
        checks.count_of_states("SLSTM", (state, state), ZOO["slstm"].states)
    with pytest.raises(RuntimeError, match="all states should also be 3-D but got"):
        checks.state_dims(state, [state, state, state[0]])
    assert checks.state_shapes(ZOO["star"], [[torch.zeros(6, 4), torch.zeros(3, 3)]], 2) == [(1, 2, 3)]


@others
def test_a_stack_is_as_wide_as_its_cells_units(name: str) -> None:
    layer = random_layer(key(name), Shape())
    weights = [[layer.w_ih[0], layer.w_hh[0], *layer.parameters]]
    stack = Stack(key(name), layer.x, tuple(layer.states0), weights)
    assert stack.hidden_size == stack.layer(0, layer.x).hidden_size == 6
    assert preference_cuda.order(layer, "forward") == ("triton",)
    gates = [len(gates) for gates in (ZOO[name].x_gates, ZOO[name].u_gates)]
    counts = dict(zip(cost.TERMS, cost.terms(cost.Sizes(key(name), 5, 3, 4, 16, 16, threads=1)), strict=True))
    assert counts["multiplication of the input, alone"] == 5 * 3 * 4 * 16 * gates[0]
    assert counts["multiplication of the state, alone"] == 5 * 3 * 16 * 16 * gates[1]
