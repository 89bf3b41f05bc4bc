"""What `Recurrent` and `RecurrentCell` compute, against plain loops over their cells' steps in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.cells.zoo import ZOO
from tests.layers.plain_loops import as_hx, by_loops, inputs_of, recurrent, single, states_of
from tests.tolerances import assert_accurate
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, gradients, random, tensors

STACKS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "no bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "recompute": {"recompute": True, "bidirectional": True},
    "everything": {"num_layers": 2, "bidirectional": True, "bias": False},
}
DIFFERENT = ("peephole_lstm", "slstm", "indrnn", "star", "zoneout_lstm", "scaled_residual")
"""Parameters; four states; no product with the state; fewer gates of the state; inputs of the steps."""
LENGTHS = [5, 0, 3]

every = pytest.mark.parametrize("name", ZOO)
cells = pytest.mark.parametrize("name", DIFFERENT)
stacks = pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)


def masks() -> tuple[Tensor, Tensor]:
    return torch.tensor(LENGTHS), torch.rand(TIME, BATCH) < 0.3


def called(module: Any, x: Any, states: Any, inputs: dict[str, Tensor], **options: Any) -> list[Any]:
    """The output, the final states, and those of every step."""
    output, finals, histories = module(x, as_hx(states), return_states=True, **options, **inputs)
    return [output, *tensors(finals), *tensors(histories)]


def differentiated(results: Any, module: Any, *arguments: Any) -> list[Tensor | None]:
    """Of slstm's m, on which nothing depends, no gradient is known to autograd: it is zero."""
    return gradients(results, [*module.parameters(), *tensors(arguments)], materialize_grads=True)


@every
@stacks
def test_results_and_gradients_are_those_of_loops(name: str, options: dict[str, Any]) -> None:
    module = recurrent(name, **options)
    x, states, inputs = random(TIME, BATCH, INPUT, grad=True), states_of(module), inputs_of(module)
    lengths, resets = masks()
    got = called(module, x, states, inputs, lengths=lengths, resets=resets)
    output, finals, histories = by_loops(module, x, states, lengths, resets, [*inputs.values()])
    expected = [output, *finals, *histories]
    assert_close(got, expected)
    arguments = x, states, tuple(inputs.values())
    assert_close(differentiated(got, module, *arguments), differentiated(expected, module, *arguments))


@cells
def test_without_states_they_are_zero_and_without_gradients_nothing_changes(name: str) -> None:
    module = recurrent(name, num_layers=2)
    x, inputs = random(TIME, BATCH, INPUT), inputs_of(module)
    zeros = tuple(torch.zeros(2, BATCH, HIDDEN).double() for _ in module.cell.states)
    output, finals, _ = by_loops(module, x, zeros, inputs=[*inputs.values()])
    assert_close([output, *finals], tensors(module(x, **inputs)))
    assert_close(tensors(module(x, as_hx(zeros), **inputs)), tensors(module(x, **inputs)))
    with torch.no_grad():
        assert_close(tensors(module(x, **inputs)), [output, *finals])
    with torch.inference_mode():
        for _ in range(3):
            assert_close(tensors(module(x, **inputs)), [output, *finals])


@cells
def test_layouts_tell_the_same(name: str) -> None:
    """batch_first, unbatched, packed in order or not; each with the states of every step and inputs of the steps."""
    module = recurrent(name, num_layers=2, bidirectional=True)
    x, states, inputs = random(TIME, BATCH, INPUT), states_of(module), inputs_of(module)
    lengths, resets = torch.tensor([3, 5, 2]), masks()[1]
    expected = called(module, x, states, inputs, lengths=lengths, resets=resets)

    first = recurrent(name, num_layers=2, bidirectional=True, batch_first=True)
    first.load_state_dict(module.state_dict())
    turned = {key: value.transpose(1, 2) for key, value in inputs.items()}
    got = called(first, x.transpose(0, 1), states, turned, lengths=lengths, resets=resets.mT)
    many = len(states)
    assert_close(got[0], expected[0].transpose(0, 1))
    assert_close(got[1 : 1 + many], expected[1 : 1 + many])
    assert_close(got[1 + many :], [history.transpose(1, 2) for history in expected[1 + many :]])

    for k in range(BATCH):
        one = {key: value[:, :, k] for key, value in inputs.items()}
        own = [state[:, k] for state in states]
        got = called(module, x[:, k], tuple(own), one, lengths=int(lengths[k]), resets=resets[:, k])
        assert_close(got[0], expected[0][:, k])
        assert_close(got[1 : 1 + many], [final[:, k] for final in expected[1 : 1 + many]])
        assert_close(got[1 + many :], [history[:, :, k] for history in expected[1 + many :]])

    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, *others = called(module, packed, states, inputs, resets=resets)
    assert_close([pad_packed_sequence(output)[0], *others], expected)


@pytest.mark.parametrize("name", ["peephole_lstm", "zoneout_lstm"])
def test_dropout_draws_as_torchs_layers_do(name: str) -> None:
    module = recurrent(name, num_layers=3, dropout=0.4, bidirectional=True)
    x, states, inputs = random(TIME, BATCH, INPUT, grad=True), states_of(module), inputs_of(module)
    torch.manual_seed(5)
    got = tensors(module(x, as_hx(states), **inputs))
    torch.manual_seed(5)
    output, finals, _ = by_loops(module, x, states, inputs=[*inputs.values()])
    assert_close(got, [output, *finals])
    module.eval()
    output, finals, _ = by_loops(module, x, states, inputs=[*inputs.values()])
    assert_close(tensors(module(x, as_hx(states), **inputs)), [output, *finals])


@cells
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (5, 0), (0, 0)], ids=str)
def test_empty_sizes(name: str, steps: int, batch: int) -> None:
    module = recurrent(name, num_layers=2, bidirectional=True)
    x, inputs = random(steps, batch, INPUT, grad=True), inputs_of(module, 4, steps, batch, HIDDEN)
    states = states_of(module, 4, batch, HIDDEN)
    got = called(module, x, states, inputs)
    assert got[0].shape == (steps, batch, 2 * HIDDEN)
    many = len(states)
    if steps == 0:
        assert_close(got[1 : 1 + many], list(states))
    assert [y.shape for y in got[1 + many :]] == [(4, steps, batch, HIDDEN)] * many
    found = differentiated(got, module, x, states, tuple(inputs.values()))
    assert all(d is not None and d.isfinite().all() for d in found)


@cells
def test_a_layer_is_a_loop_of_single_steps(name: str) -> None:
    layer, cell = recurrent(name), single(name)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x, states, inputs = random(TIME, BATCH, INPUT, grad=True), states_of(layer), inputs_of(layer)
    expected = called(layer, x, states, inputs)
    own: Any = tuple(state[0] for state in states)
    outputs = []
    for t in range(TIME):
        own = cell(x[t], as_hx(own), **{key: value[0, t] for key, value in inputs.items()})
        own = own if isinstance(own, tuple) else (own,)
        outputs.append(own[0])
    got = [torch.stack(outputs), *[state[None] for state in own]]
    assert_close(got, expected[: len(got)])
    arguments = [x, *states, *inputs.values()]
    assert_close(
        gradients(got, [*cell.parameters(), *arguments], materialize_grads=True),
        gradients(expected[: len(got)], [*layer.parameters(), *arguments], materialize_grads=True),
    )


@cells
def test_a_single_step_unbatched_and_from_nothing(name: str) -> None:
    cell = single(name)
    x, states, inputs = random(BATCH, INPUT), states_of(cell, BATCH, HIDDEN), inputs_of(cell, BATCH, HIDDEN)
    expected = tensors(cell(x, as_hx(states), **inputs))
    for k in range(BATCH):
        own = tuple(state[k] for state in states)
        got = cell(x[k], as_hx(own), **{key: value[k] for key, value in inputs.items()})
        assert_close(tensors(got), [after[k] for after in expected])
    zeros = tuple(torch.zeros_like(state) for state in states)
    assert_close(tensors(cell(x, **inputs)), tensors(cell(x, as_hx(zeros), **inputs)))


@cells
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["cast", "autocast"])
def test_16_bits(name: str, dtype: torch.dtype, autocast: bool) -> None:
    """States and sums are kept in float32: results are float32's of the rounded arguments, rounded once."""
    module, wide = recurrent(name, bidirectional=True, dtype=dtype), recurrent(name, bidirectional=True)
    wide.load_state_dict(module.state_dict())
    x, states, inputs = torch.randn(TIME, BATCH, INPUT, dtype=dtype), states_of(module), inputs_of(module)
    known: Any = [[t.detach().double() for t in group] for group in ((x,), states, inputs.values())]

    def results(module: Any, kind: torch.dtype) -> list[Tensor]:
        of_x, of_states, of_inputs = [[t.to(kind) for t in group] for group in known]
        return called(module, of_x[0], of_states, dict(zip(inputs, of_inputs, strict=True)), lengths=LENGTHS)

    truth, single = results(wide, torch.float64), results(wide.float(), torch.float32)
    if autocast:
        with torch.autocast("cpu", dtype):
            got = results(wide, torch.float32)
    else:
        got = results(module, dtype)
    for result, exact, other in zip(got, truth, single, strict=True):
        assert_accurate("a result", result, exact, other.to(dtype))
