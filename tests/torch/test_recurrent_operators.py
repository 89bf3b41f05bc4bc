"""`fastrnn::cell_forward` and `fastrnn::cell_backward`, which all cells that are not built in share: how torch, its
transforms and its modes take them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import jacfwd, jacrev, jvp
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fastrnn.backends.layer import ARGUMENTS, Layer
from tests.cells.zoo import ZOO
from tests.layers.plain_loops import as_hx, by_loops, inputs_of, recurrent, states_of
from tests.random_layers import Shape, any_layer, cast
from tests.torch.test_operator_checks import WRONG, each
from tests.torch.test_ops import Recorder
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, error_of, gradients, random, tensors

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)  # rules of torch for jvp are scripted

CELLS = ("peephole_lstm", "slstm", "indrnn", "star", "zoneout_lstm")
SMALL = Shape(steps=3, batch=2, inputs=2, hidden=3, directions=2, lengths=True, resets=True)

cells = pytest.mark.parametrize("name", CELLS)


def layer_of(name: str, shape: Shape = SMALL, dtype: torch.dtype = torch.float64) -> Layer:
    """Without NaN, since checkers compare inputs, too."""
    layer = any_layer(ZOO[name], shape)
    for tensor in (layer.x, *layer.inputs):
        tensor.nan_to_num_()
    return cast(layer, dtype)


def forward(layer: Layer, *options: Any) -> Any:
    assert layer.cell.program is not None
    return torch.ops.fastrnn.cell_forward(layer.cell.program.text, *layer.arguments(), *options)


@pytest.mark.parametrize("name", ["indrnn", "zoneout_lstm"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_the_forward_operator_passes_opcheck(name: str, training: bool) -> None:
    layer = layer_of(name) if training else layer_of(name).with_tensors(torch.detach)
    arguments = (ZOO[name].program.text, *layer.arguments(), training, training, "reference")  # type: ignore[union-attr]
    torch.library.opcheck(torch.ops.fastrnn.cell_forward.default, arguments)


@pytest.mark.parametrize("name", ["indrnn", "zoneout_lstm"])
@pytest.mark.parametrize("needs", [(True, True), (False, True), (True, False)], ids=["both", "weights", "x"])
def test_the_backward_operator_passes_opcheck(name: str, needs: tuple[bool, bool]) -> None:
    layer = layer_of(name).with_tensors(torch.detach)
    states, finals, saved = forward(layer, True, True, "reference")
    arriving = list(map(torch.randn_like, states)), [None for _ in finals]
    text = ZOO[name].program.text  # type: ignore[union-attr]
    arguments = (text, *arriving, states, saved, *layer.arguments(), *needs, "reference")
    torch.library.opcheck(torch.ops.fastrnn.cell_backward.default, arguments)


@pytest.mark.parametrize("name", ["peephole_lstm", "indrnn", "zoneout_lstm"])
def test_first_and_second_derivatives(name: str) -> None:
    layer = layer_of(name, replace(SMALL, directions=1, steps=2))

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        own = layer.with_tensors(lambda tensor: next(given) if tensor.is_floating_point() else tensor)
        states, finals, _ = forward(own, True, True, "reference")
        return (*states, *finals)

    floating = tuple(tensor.detach().requires_grad_() for tensor in layer.tensors() if tensor.is_floating_point())
    torch.autograd.gradcheck(function, floating)
    torch.autograd.gradgradcheck(function, floating)


PROGRAMS = {
    "empty": "",
    "no json": "lstm",
    "no object": "[]",
    "nothing in it": "{}",
    "another version": json.dumps({"version": 9}),
}


@pytest.mark.parametrize("text", PROGRAMS.values(), ids=PROGRAMS)
def test_what_is_no_program_is_refused(text: str) -> None:
    arguments = layer_of("peephole_lstm").arguments()
    with pytest.raises(ValueError, match="this is no program of a cell: "):
        torch.ops.fastrnn.cell_forward(text, *arguments, True, True, "reference")
    with pytest.raises(ValueError, match="this is no program of a cell: "):
        torch.ops.fastrnn.cell_backward(text, [], [], [], [], *arguments, True, True, "reference")


@pytest.mark.parametrize("name", ["peephole_lstm", "zoneout_lstm"])
def test_tensors_that_do_not_fit_are_refused(name: str) -> None:
    layer = layer_of(name, dtype=torch.float32)
    text = ZOO[name].program.text  # type: ignore[union-attr]
    values = [[t.detach() for t in v] if isinstance(v, list) else v for v in layer.arguments()]
    values = [v.detach() if isinstance(v, Tensor) else v for v in values]
    given = dict(zip([row.name for row in ARGUMENTS], values, strict=True))
    states, finals, saved = torch.ops.fastrnn.cell_forward(text, *given.values(), True, True, "reference")
    kept = dict(zip(("d_states", "d_finals", "states", "saved"), (states, finals, states, saved), strict=True))

    def backward(kept: Any, given: Any) -> Any:
        return torch.ops.fastrnn.cell_backward(text, *kept.values(), *given.values(), True, True, "reference")

    own = rf"{name}: |[Ii]nput and (parameter|hidden) tensors|Expected hidden"
    for mistake in WRONG.values():
        for what, wrong in each(given, mistake):
            error = error_of(lambda: torch.ops.fastrnn.cell_forward(text, *wrong.values(), True, True, "reference"))  # noqa: B023
            assert re.match(own, str(error)), f"{what}: {error}"
        for what, wrong in each(kept, mistake):
            error = error_of(lambda: backward(wrong, given))  # noqa: B023
            assert re.match(own, str(error)), f"{what}: {error}"
    for what in ("w_ih", "w_hh", "biases", "states0", "parameters", "inputs"):
        for wrong in (given[what][:-1], [*given[what], *given["w_ih"]]):
            if wrong != given[what]:
                with pytest.raises(ValueError, match=rf"{name}: .* must hold .* tensors, got"):
                    torch.ops.fastrnn.cell_forward(text, *(given | {what: wrong}).values(), True, True, "reference")


@cells
def test_a_mode_sees_the_operators_and_changes_no_result(name: str) -> None:
    module = recurrent(name)
    x, states, inputs = random(TIME, BATCH, INPUT, grad=True), states_of(module), inputs_of(module)
    wanted = [x, *states, *inputs.values(), *module.parameters()]

    def run() -> list[Any]:
        results = tensors(module(x, as_hx(states), **inputs))
        return [*results, *gradients(results, wanted)]

    unwatched = run()
    with Recorder() as recorder:
        watched = run()
    assert recorder.names == ["cell_forward", "cell_backward"]
    assert all(torch.equal(a, b) for a, b in zip(watched, unwatched, strict=True))


@cells
def test_fake_tensors_have_the_shapes_of_results(name: str) -> None:
    real = recurrent(name, num_layers=2, bidirectional=True)
    expected = tensors(real(random(TIME, BATCH, INPUT), **inputs_of(real)))
    with FakeTensorMode():
        module = recurrent(name, num_layers=2, bidirectional=True)
        got = tensors(module(random(TIME, BATCH, INPUT), **inputs_of(module)))
        gradients(got, module.parameters())
    assert [(y.shape, y.dtype) for y in got] == [(y.shape, y.dtype) for y in expected]


@cells
def test_operations_are_counted(name: str) -> None:
    module, cell = recurrent(name, bidirectional=True), ZOO[name]
    x, inputs = random(TIME, BATCH, INPUT, grad=True), inputs_of(module)
    with FlopCounterMode(display=False) as counter:
        output, _ = module(x, **inputs)
    of_x, of_u = len(cell.x_gates) * HIDDEN * INPUT, len(cell.u_gates) * HIDDEN * HIDDEN
    once = 2 * 2 * TIME * BATCH * (of_x + of_u)
    assert counter.get_total_flops() == once
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * once


@cells
def test_a_checkpointed_call_has_the_same_gradients(name: str) -> None:
    module = recurrent(name, num_layers=2)
    x, states, inputs = random(TIME, BATCH, INPUT, grad=True), states_of(module), inputs_of(module)
    wanted = [x, *states, *inputs.values(), *module.parameters()]
    got = checkpoint(lambda *given: module(*given, **inputs), x, as_hx(states), use_reentrant=False)
    assert_close(gradients(got, wanted), gradients(module(x, as_hx(states), **inputs), wanted))


@cells
def test_derivatives_of_derivatives_and_forward_ones(name: str) -> None:
    """Through the module, against autograd through plain loops."""
    module = recurrent(name, bidirectional=True)
    x, states, inputs = random(3, BATCH, INPUT), states_of(module), inputs_of(module, 2, 3, BATCH, HIDDEN)
    point = [x, *states, *inputs.values()]
    lengths = torch.tensor([3, 1, 2])

    def ours(*given: Tensor) -> Tensor:
        own, fed = given[1 : 1 + len(states)], dict(zip(inputs, given[1 + len(states) :], strict=True))
        output, finals = module(given[0], as_hx(own), lengths=lengths, **fed)
        return torch.stack([output.square().sum(), *[final.square().sum() for final in tensors(finals)[:1]]])

    def theirs(*given: Tensor) -> Tensor:
        own, fed = given[1 : 1 + len(states)], given[1 + len(states) :]
        output, finals, _ = by_loops(module, given[0], own, lengths, None, fed)
        return torch.stack([output.square().sum(), finals[0].square().sum()])

    places = tuple(range(len(point)))
    tangents = tuple(map(torch.randn_like, point))
    plain = tuple(tensor.detach() for tensor in point)
    assert_close(jvp(ours, plain, tangents)[1], jvp(theirs, plain, tangents)[1])
    expected = jacrev(theirs, places)(*plain)
    assert_close(jacrev(ours, places)(*plain), expected)
    assert_close(jacfwd(ours, places)(*plain), expected)

    def penalty(function: Any) -> list[Tensor]:
        given = [tensor.detach().requires_grad_() for tensor in point]
        first = torch.autograd.grad(function(*given).sum(), given, create_graph=True, materialize_grads=True)
        total = sum(d.square().sum() for d in first)
        return [*torch.autograd.grad(total, [*given, *module.parameters()], materialize_grads=True)]  # type: ignore[arg-type]

    assert_close(penalty(ours), penalty(theirs))
