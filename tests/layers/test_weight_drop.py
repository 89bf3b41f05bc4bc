"""`weight_drop`: what it computes beside plain products, what it draws, and what state_dicts and optimizers see."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize

import fastrnn
import fastrnn.keras
from fastrnn.cells.library import mgu
from tests.layers.plain_loops import recurrent, single
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, classes, gradients, random, tensors

RATE = 0.4
SEED = 3
KINDS = ("GRU", "LSTM", "LSTM_CELL", "GRU_CELL", "Recurrent", "RecurrentCell")
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, **options: Any) -> Any:
    if kind == "Recurrent":
        return recurrent("peephole_lstm", **options)
    if kind == "RecurrentCell":
        return single("peephole_lstm", **options)
    ours, _, own = classes(kind)
    return ours(INPUT, HIDDEN, dtype=torch.float64, **own, **options)


def dropping(kind: str, **options: Any) -> tuple[Any, Any, Any]:
    """A module whose weights are dropped, the same as it was, and an input."""
    module = make(kind, **options)
    x = random(BATCH, INPUT) if "Cell" in type(module).__name__ else random(TIME, BATCH, INPUT)
    return fastrnn.weight_drop(copy.deepcopy(module), RATE), module, x.requires_grad_()


def called(module: Any, *arguments: Any, **options: Any) -> list[Any]:
    torch.manual_seed(SEED)
    return tensors(module(*arguments, **options))


def weights(module: Any) -> list[str]:
    return [name for name in module.state_dict() if name.startswith("weight_hh")]


@kinds
def test_values_and_gradients_are_those_of_dropped_weights(kind: str) -> None:
    options: dict[str, Any] = {} if "C" in kind.removeprefix("Rec") else {"num_layers": 2, "bidirectional": True}
    module, alone, x = dropping(kind, **options)
    torch.manual_seed(SEED)
    masks = {name: F.dropout(torch.ones_like(getattr(alone, name)), RATE) for name in weights(alone)}
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in alone.named_parameters()}
    left = {name: parameter * masks.get(name, 1) for name, parameter in parameters.items()}
    expected = tensors(torch.func.functional_call(alone, left, (x,)))
    got = called(module, x)
    assert_close(got, expected)
    raw = [name.removeprefix("parametrizations.").removesuffix(".original") for name, _ in module.named_parameters()]
    found = gradients(got, [x, *module.parameters()])
    assert_close(found, gradients(expected, [x, *(parameters[name] for name in raw)]))


@kinds
def test_a_call_draws_one_mask_of_each_weight(kind: str) -> None:
    module, alone, x = dropping(kind)
    for given in ((x,), (x.detach(),)):
        module(*given)
        called(module, *given)
        state = torch.get_rng_state()
        torch.manual_seed(SEED)
        for name in weights(alone):
            F.dropout(getattr(alone, name), RATE)
        assert torch.equal(torch.get_rng_state(), state)


def test_of_a_loop_of_steps_each_has_a_mask_but_where_they_are_cached() -> None:
    cell = fastrnn.weight_drop(fastrnn.RNNCell(INPUT, HIDDEN, bias=False, dtype=torch.float64), RATE)
    zero, h = torch.zeros(BATCH, INPUT, dtype=torch.float64), random(BATCH, HIDDEN)
    assert not torch.equal(cell(zero, h), cell(zero, h))
    with parametrize.cached():
        assert torch.equal(cell(zero, h), cell(zero, h))


def test_so_many_are_dropped_and_the_others_enlarged() -> None:
    module = fastrnn.weight_drop(fastrnn.LSTM(2, 100), 0.25)
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original.fill_(1)
    found = module.weight_hh_l0
    assert found.unique().tolist() == pytest.approx([0, 4 / 3])
    assert abs((found > 0).double().mean() - 0.75) < 4 * (0.75 * 0.25 / found.numel()) ** 0.5


@kinds
def test_in_evaluation_the_weights_are_as_they_are(kind: str) -> None:
    module, alone, x = dropping(kind)
    state = torch.get_rng_state()
    for _ in range(3):
        assert_close(tensors(module.eval()(x)), tensors(alone(x)), tolerance=0)
    assert module.get_parameter("weight_ih" + "_l0" * hasattr(module, "num_layers")) is not None
    name = weights(alone)[0]
    assert getattr(module, name) is getattr(module.parametrizations, name).original
    assert torch.equal(torch.get_rng_state(), state)


@kinds
def test_state_dicts_load_either_way(kind: str) -> None:
    module, alone, x = dropping(kind)
    assert {*module.state_dict()} == {*alone.state_dict()}
    other, whole = make(kind), nn.Sequential(fastrnn.weight_drop(make(kind), 0.1))
    for target, source in ((other, module), (whole, nn.Sequential(other)), (module, other), (module, module)):
        assert not any(target.load_state_dict(source.state_dict()))
    held = nn.Sequential(module).state_dict()
    assert_close([*whole.state_dict().values()], [held[name] for name in whole.state_dict()])
    assert_close(tensors(whole.eval()(x)), tensors(other(x)))
    module.load_state_dict({name: value.clone() for name, value in other.state_dict().items()}, assign=True)
    assert_close(tensors(module.eval()(x)), tensors(other(x)))
    wrong = other.state_dict()
    del wrong[weights(alone)[0]]
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict(wrong)


@kinds
def test_it_can_be_taken_off_again(kind: str) -> None:
    module, alone, x = dropping(kind)
    raw = {*map(id, module.parameters())}
    for name in weights(alone):
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    assert type(module) is type(alone)
    assert {*map(id, module.parameters())} == raw
    assert {*module.state_dict()} == {*alone.state_dict()}
    assert_close(tensors(module(x)), tensors(alone(x)), tolerance=0)
    assert_close(called(fastrnn.weight_drop(module, RATE), x), called(fastrnn.weight_drop(alone, RATE), x), tolerance=0)


def test_optimizers_go_on_with_the_weights_themselves() -> None:
    module = make("LSTM")
    raw = module.weight_hh_l0
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    fastrnn.weight_drop(module, RATE)
    before = raw.detach().clone()
    module(random(TIME, BATCH, INPUT))[0].square().sum().backward()
    assert any(parameter is raw for parameter in module.parameters())
    optimizer.step()
    assert not torch.equal(raw, before)
    assert torch.equal(module.eval().weight_hh_l0, raw)


def test_copies_and_assignments() -> None:
    module, _, x = dropping("LSTM")
    other = copy.deepcopy(module)
    assert_close(called(other, x), called(module, x), tolerance=0)
    with torch.no_grad():
        other.parametrizations.weight_hh_l0.original.fill_(1)
    assert other.state_dict()["weight_hh_l0"].eq(1).all()
    assert not module.state_dict()["weight_hh_l0"].eq(1).any()
    module.parametrizations.weight_hh_l0[0].p = 1.0
    assert not module.weight_hh_l0.any()
    assert "WeightDrop(p=1.0)" in repr(module)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(module)


def test_a_draw_is_never_written_to() -> None:
    """By its plain name nothing is assigned: functional_call would put back a draw in place of the weights."""
    module, _, x = dropping("LSTM")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for write in (
        lambda: functional_call(module, before, (x,)),
        lambda: setattr(module, "weight_hh_l0", torch.ones_like(before["weight_hh_l0"])),
    ):
        with pytest.raises(RuntimeError, match="right_inverse"):
            write()
    functional_call(module, dict(module.named_parameters()), (x,))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_first_values_and_gates_are_the_weights() -> None:
    layer = fastrnn.weight_drop(fastrnn.Recurrent(mgu, INPUT, HIDDEN, init={"weight_hh": 3.0}), 1.0)
    with torch.no_grad():
        layer.parametrizations.weight_hh_l0.original.zero_()
        layer.reset_parameters()
        assert layer.state_dict()["weight_hh_l0"].eq(3).all()
        layer.gate("weight_hh_l0", "f").fill_(7)
    assert layer.state_dict()["weight_hh_l0"][:HIDDEN].eq(7).all()


def test_keras_gets_the_weights() -> None:
    lstm = fastrnn.weight_drop(fastrnn.LSTM(INPUT, HIDDEN), 1.0)
    [arrays] = fastrnn.keras.get_weights(lstm)
    assert arrays[1].all()


def test_names_and_other_parametrizations() -> None:
    module = fastrnn.weight_drop(make("LSTM", num_layers=2), RATE, ["weight_ih_l0", "weight_hh_l1"])
    assert [*module.parametrizations] == ["weight_ih_l0", "weight_hh_l1"]
    fastrnn.weight_drop(module, RATE, ["weight_hh_l0"])
    assert {*module.state_dict()} == {*make("LSTM", num_layers=2).state_dict()}
    normed = fastrnn.weight_drop(parametrizations.weight_norm(make("GRU"), "weight_hh_l0"), 0.5)
    alone = parametrizations.weight_norm(make("GRU"), "weight_hh_l0")
    assert not any(alone.load_state_dict(normed.state_dict()))
    x = random(TIME, BATCH, INPUT)
    assert_close(normed.eval()(x), alone(x))
    assert not torch.allclose(normed.train()(x)[0], alone(x)[0])


def test_compiled_whole() -> None:
    module, _, x = dropping("GRU")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    got, expected = called(compiled, x), called(module, x)
    assert_close(got, expected)
    assert_close(gradients(got, module.parameters()), gradients(expected, module.parameters()))


WRONG: dict[str, tuple[Any, ...]] = {
    "no module": (lambda: fastrnn.weight_drop(3, 0.5), TypeError, "must be a torch.nn.Module, got int"),
    "torch's": (lambda: fastrnn.weight_drop(nn.LSTM(2, 3), 0.5), TypeError, "fastrnn.accelerate"),
    "rate": (lambda: fastrnn.weight_drop(make("GRU"), 1.5), ValueError, "p has to be between 0 and 1, but got 1.5"),
    "string": (lambda: fastrnn.weight_drop(make("GRU"), 0.5, "weight_hh_l0"), TypeError, "names must be a sequence"),
    "number": (lambda: fastrnn.weight_drop(make("GRU"), 0.5, 3), TypeError, "names must be a sequence"),
    "name": (
        lambda: fastrnn.weight_drop(make("GRU"), 0.5, ["weight_hh_l1"]),
        ValueError,
        "no parameter 'weight_hh_l1'",
    ),
    "none": (lambda: fastrnn.weight_drop(nn.Linear(2, 3), 0.5), ValueError, "Linear has no parameter weight_hh"),
    "again": (lambda: fastrnn.weight_drop(dropping("GRU")[0], 0.5), ValueError, "weight_hh_l0 is dropped already"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_a_refused_call_has_changed_nothing() -> None:
    module = make("GRU")
    with pytest.raises(ValueError, match="no parameter"):
        fastrnn.weight_drop(module, 0.5, ["weight_hh_l0", "nothing"])
    assert not parametrize.is_parametrized(module)
