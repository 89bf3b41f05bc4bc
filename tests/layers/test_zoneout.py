"""Zoneout by a rate: which inputs of the steps a module draws, and what it computes with them, beside plain loops."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.cells import library
from tests.layers.plain_loops import by_loops, states_of, step
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, gradients, random, tensors

RATES = (0.3, 0.6)
GROUPS = 4
SEED = 3
LENGTHS = torch.tensor([4, 5, 0])
STACK: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


def make(name: str, **options: Any) -> fastrnn.Recurrent:
    """By the reference unless said otherwise."""
    options = {"dtype": torch.float64, "backend": "reference", **options}
    return fastrnn.Recurrent(getattr(library, name), INPUT, HIDDEN, **options)


def make_cell(name: str, **options: Any) -> fastrnn.RecurrentCell:
    options = {"dtype": torch.float64, "backend": "reference", **options}
    return fastrnn.RecurrentCell(getattr(library, name), INPUT, HIDDEN, **options)


def drawn(*sizes: int, rates: tuple[float, ...] = RATES) -> list[Tensor]:
    """What a call draws after this seed."""
    torch.manual_seed(SEED)
    return [torch.empty(sizes, dtype=torch.float64).bernoulli_(rate) for rate in rates]


def called(module: Any, *arguments: Any, **options: Any) -> Any:
    torch.manual_seed(SEED)
    return module(*arguments, **options)


@pytest.mark.parametrize("masked", [False, True], ids=["", "lengths and resets"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("zoneout_lstm", "reference"),
        ("zoneout_lstm", "numba"),
        ("zoneout_gru", "reference"),
        pytest.param("zoneout_gru", "numba", marks=pytest.mark.exhaustive),
    ],
)
def test_values_and_gradients_are_those_of_a_loop(name: str, training: bool, backend: str, masked: bool) -> None:
    rates = RATES if name == "zoneout_lstm" else RATES[:1]
    module = make(name, **STACK, zoneout=rates, backend=backend).train(training)
    x, states, resets = random(TIME, BATCH, INPUT, grad=True), states_of(module), torch.rand(TIME, BATCH) < 0.3
    sizes = (GROUPS, TIME, BATCH, HIDDEN)
    keep = drawn(*sizes, rates=rates) if training else [torch.full(sizes, rate, dtype=torch.float64) for rate in rates]
    masks: list[Any] = [LENGTHS, resets] if masked else [None, None]
    output, finals, _ = by_loops(module, x, states, *masks, inputs=keep)
    got = tensors(called(module, x, states if len(states) > 1 else states[0], lengths=masks[0], resets=masks[1]))
    assert_close(got, [output, *finals])
    wanted = [x, *states, *module.parameters()]
    assert_close(gradients(got, wanted), gradients([output, *finals], wanted))


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_step(training: bool, batched: bool) -> None:
    cell = make_cell("zoneout_lstm", zoneout=RATES).train(training)
    sizes = (BATCH, HIDDEN)[not batched :]
    x, states = random(*sizes[:-1], INPUT, grad=True), [random(*sizes, grad=True) for _ in range(2)]
    keep = drawn(*sizes) if training else [torch.full(sizes, rate, dtype=torch.float64) for rate in RATES]
    rows = [value.reshape(-1, value.shape[-1]) for value in (x, *states, *keep)]
    expected = [after.reshape(sizes) for after in step(cell, "", rows[0], rows[1:3], rows[3:])]
    got = tensors(called(cell, x, states))
    assert_close(got, expected)
    wanted = [x, *states, *cell.parameters()]
    assert_close(gradients(got, wanted), gradients(expected, wanted))


def test_units_steps_sequences_layers_and_directions_are_drawn_apart() -> None:
    """Seen through a layer that would otherwise forget: n is 0, z is 0, and what is kept is what came before."""
    options: dict[str, Any] = {**STACK, "zoneout": 0.25, "dtype": torch.float64, "backend": "reference"}
    module = fastrnn.Recurrent(library.zoneout_gru, 1, 40, **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.zero_()
            if name.startswith("bias_ih"):
                module.gate(name, "z").fill_(-1000.0)
    x = torch.zeros(1, 50, 1, dtype=torch.float64)
    output, hn = module(x, torch.ones(4, 50, 40, dtype=torch.float64))
    assert ((hn == 0) | (hn == 1)).all()
    assert abs(hn.mean() - 0.25) < 4 * (0.25 * 0.75 / hn.numel()) ** 0.5
    assert hn.flatten(0, 1).unique(dim=0).shape[0] == 200
    steps, _ = module(x.expand(9, 50, 1), torch.ones(4, 50, 40, dtype=torch.float64))
    of_forward = steps[..., :40].mean((1, 2))  # what is left after each step
    assert_close(of_forward[:3], 0.25 ** torch.arange(1, 4, dtype=torch.float64), tolerance=0.1)
    assert output.shape == (1, 50, 80)


def test_one_rate_is_that_of_all_states() -> None:
    x = random(TIME, BATCH, INPUT)
    module = make("zoneout_lstm", zoneout=0.3)
    other = make("zoneout_lstm", zoneout=(0.3, 0.3))
    other.load_state_dict(module.state_dict())
    assert_close(called(module, x), called(other, x))
    other.zoneout = 0.0
    plain = fastrnn.LSTM(INPUT, HIDDEN, dtype=torch.float64)
    plain.load_state_dict(module.state_dict())
    assert_close(other(x), plain(x))


def test_rates_of_nothing_and_of_all_draw_nothing() -> None:
    module, x, states = (
        make("zoneout_lstm", zoneout=(0, 1)),
        random(TIME, BATCH, INPUT),
        random(2, 1, BATCH, HIDDEN),
    )
    before = torch.get_rng_state()
    _, (hn, cn) = module(x, tuple(states))
    module.eval().zoneout = RATES
    fastrnn.explain(module.train(), x)
    module.eval()(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert_close(cn, states[1])
    assert not torch.equal(hn, states[0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("sort", [True, False], ids=["in order", "in any order"])
def test_of_packed_sequences_it_is_that_of_padded_ones(sort: bool, batch_first: bool) -> None:
    module = make("zoneout_lstm", **STACK, zoneout=RATES, batch_first=batch_first)
    x = random(BATCH, TIME, INPUT) if batch_first else random(TIME, BATCH, INPUT)
    lengths = torch.tensor([5, 3, 2] if sort else [2, 5, 3])
    options = {"batch_first": batch_first, "enforce_sorted": sort}
    output, finals = called(module, pack_padded_sequence(x, lengths, **options))
    padded, expected = called(module, x, lengths=lengths)
    assert_close(tensors(finals), tensors(expected))
    assert_close(output.data, pack_padded_sequence(padded, lengths, **options).data)


def test_unbatched_there_is_no_batch() -> None:
    module, x = make("zoneout_lstm", **STACK, zoneout=RATES), random(TIME, 1, INPUT)
    output, finals = called(module, x)
    assert_close(tensors(called(module, x[:, 0])), [output[:, 0], *[final[:, 0] for final in finals]])


def test_it_repeats_with_the_seed_in_copies_too() -> None:
    module, x = make("zoneout_lstm", **STACK, zoneout=RATES), random(TIME, BATCH, INPUT)
    first, again, other = called(module, x)[0], called(module, x)[0], module(x)[0]
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    for one in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(called(one, x)[0], first)
    assert repr(module).endswith("bidirectional=True, zoneout=(0.3, 0.6), backend='reference')")
    assert "zoneout=0.5" in repr(make_cell("zoneout_gru", zoneout=0.5))


def test_changed_rates_and_modes_take_effect_in_the_next_call() -> None:
    module, x = make("zoneout_lstm", backend="numba"), random(TIME, BATCH, INPUT)
    states, sizes = [random(1, BATCH, HIDDEN) for _ in range(2)], (1, TIME, BATCH, HIDDEN)
    for training in (True, False, True, False):
        module.train(training)
        for rate in (0.3, 0.9):
            module.zoneout = rate
            keep = drawn(*sizes, rates=(rate, rate)) if training else [torch.full(sizes, rate, dtype=torch.float64)] * 2
            with torch.set_grad_enabled(training):
                got, expected = called(module, x, states)[0], by_loops(module, x, states, inputs=keep)[0]
            assert_close(got, expected)


def test_compiled_whole() -> None:
    module, x = make("zoneout_gru", zoneout=0.3), random(TIME, BATCH, INPUT, grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    got, expected = (called(function, x) for function in (compiled, module))
    assert_close(tensors(got), tensors(expected))
    assert_close(gradients(got, [x]), gradients(expected, [x]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inputs_have_the_inputs_dtype(dtype: torch.dtype) -> None:
    module = make("zoneout_lstm", zoneout=RATES, dtype=dtype)
    assert module(torch.randn(TIME, BATCH, INPUT, dtype=dtype))[0].dtype == dtype
    module.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(torch.randn(TIME, BATCH, INPUT))[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "rates", [-0.1, 1.5, True, "0.5", (0.1,), (0.1, 0.2, 0.3), (0.1, 2), [], float("nan")], ids=repr
)
def test_what_are_no_probabilities_is_refused(rates: Any) -> None:
    message = r"zoneout should be a number in range \[0, 1\] .* or one for each of keep_h, keep_c, got "
    for one in (make, make_cell):
        with pytest.raises(ValueError, match=message):
            one("zoneout_lstm", zoneout=rates)
    module = make("zoneout_lstm", zoneout=RATES)
    module.zoneout = rates
    with pytest.raises(ValueError, match=message):
        module(random(TIME, BATCH, INPUT))


def test_cells_without_such_inputs_and_inputs_that_are_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match=r"peephole_lstm has no keep_h or keep_c: .*\.zoneout_lstm"):
        make("peephole_lstm", zoneout=0.1)
    x = random(TIME, BATCH, INPUT)
    with pytest.raises(TypeError, match="got 'keep_h', which the module draws: its zoneout is not None"):
        make("zoneout_gru", zoneout=0.1)(x, keep_h=torch.ones((), dtype=torch.float64))
    with pytest.raises(TypeError, match=r"Recurrent.forward\(\) needs keep_h"):
        make("zoneout_gru")(x)


@pytest.mark.parametrize(
    ("input", "error"),
    [(3, TypeError), (torch.zeros(2), ValueError), (torch.zeros(TIME, BATCH, INPUT).long(), ValueError)],
    ids=["number", "dimensions", "integers"],
)
def test_wrong_input_is_refused_as_without_zoneout(input: Any, error: type[Exception]) -> None:
    messages = []
    for name, options in (("zoneout_gru", {"zoneout": 0.5}), ("star", {})):
        with pytest.raises(error) as caught:
            make(name, **options)(input)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
