"""`Recurrent` and `RecurrentCell` as modules: their parameters, copies and pickles, and what torch.nn.utils makes of
them."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn
from fastrnn.cells import sigmoid, tanh
from tests.cells.zoo import ZOO, peephole_lstm
from tests.layers.plain_loops import as_hx, by_loops, inputs_of, recurrent, single, states_of
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, gradients, random, tensors

cells = pytest.mark.parametrize("name", ["peephole_lstm", "slstm", "indrnn", "star", "zoneout_lstm"])
kinds = pytest.mark.parametrize("make", [recurrent, single], ids=["layers", "step"])


def assert_by_loops(module: Any, x: Tensor) -> None:
    states, inputs = states_of(module), inputs_of(module)
    got = tensors(module(x, as_hx(states), **inputs))  # first: hooks before the call lay out what was pruned
    output, finals, _ = by_loops(module, x, states, inputs=[*inputs.values()])
    assert_close(got, [output, *finals])


@cells
def test_parameters_are_torchs_and_the_cells(name: str) -> None:
    module, cell = recurrent(name, num_layers=2, bidirectional=True), ZOO[name]
    of_x, of_u = len(cell.x_gates) * HIDDEN, len(cell.u_gates) * HIDDEN
    expected: dict[str, tuple[int, ...]] = {}
    for layer, width in enumerate((INPUT, 2 * HIDDEN)):
        for suffix in (f"_l{layer}", f"_l{layer}_reverse"):
            expected[f"weight_ih{suffix}"] = (of_x, width)
            if of_u:
                expected[f"weight_hh{suffix}"] = (of_u, HIDDEN)
            expected[f"bias_ih{suffix}"] = (of_x,)
            if of_u:
                expected[f"bias_hh{suffix}"] = (of_u,)
            expected |= {f"{parameter}{suffix}": (HIDDEN,) for parameter in cell.parameters}
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == expected
    assert list(module.state_dict()) == list(expected)
    assert not any(key.startswith("bias") for key in recurrent(name, bias=False).state_dict())


def test_the_built_in_lstm_has_torchs_parameters_and_results() -> None:
    from fastrnn.cells.lstm import lstm

    theirs = nn.LSTM(INPUT, HIDDEN, 2, bidirectional=True).double()
    ours = fastrnn.Recurrent(lstm, INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64, backend="reference")
    ours.load_state_dict(theirs.state_dict())
    x = random(TIME, BATCH, INPUT)
    assert_close(tensors(ours(x)), tensors(theirs(x)))


def test_a_seed_gives_torchs_weights() -> None:
    """Drawn in the order in which torch.nn draws them, for the gates of the same number."""
    from fastrnn.cells.gru import gru

    torch.manual_seed(2)
    theirs = nn.GRU(INPUT, HIDDEN, 2)
    torch.manual_seed(2)
    ours = fastrnn.Recurrent(gru, INPUT, HIDDEN, 2)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@kinds
def test_init(make: Any) -> None:
    module = make("peephole_lstm", init={"p_f": 1, "weight_hh": nn.init.orthogonal_, "bias_ih": nn.init.zeros_})
    suffix = "_l0" if make is recurrent else ""
    bound = HIDDEN**-0.5
    for _ in range(2):
        assert (getattr(module, f"p_f{suffix}") == 1).all()
        weight = getattr(module, f"weight_hh{suffix}")
        assert_close(weight.T @ weight, torch.eye(HIDDEN).double())
        assert getattr(module, f"bias_ih{suffix}").count_nonzero() == 0
        drawn = getattr(module, f"weight_ih{suffix}")
        assert 0.5 * bound < drawn.abs().max() <= bound
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(7)
        module.reset_parameters()


def test_init_is_of_every_layer_and_direction() -> None:
    module = recurrent("indrnn", num_layers=2, bidirectional=True, init={"w": 0.5})
    assert all((value == 0.5).all() for name, value in module.named_parameters() if name.startswith("w_l"))
    with pytest.raises(ValueError, match="Recurrent: init names 'weight_hh', the parameters of indrnn are weight_ih, "):
        recurrent("indrnn", init={"weight_hh": 1})


def test_gates_are_views() -> None:
    module = recurrent("peephole_lstm")
    with torch.no_grad():
        module.gate("bias_hh_l0", "f").fill_(3)
    assert torch.equal(module.bias_hh_l0[HIDDEN : 2 * HIDDEN], torch.full((HIDDEN,), 3.0).double())
    assert module.gate("weight_ih_l0", "o").shape == (HIDDEN, INPUT)
    assert single("star").gate("weight_ih", "z").shape == (HIDDEN, INPUT)
    with pytest.raises(ValueError, match="star: weight_hh has the gates k, got 'z'"):
        single("star").gate("weight_hh", "z")
    with pytest.raises(ValueError, match="peephole_lstm: p_f_l0 has no gates, got 'f'"):
        module.gate("p_f_l0", "f")
    with pytest.raises(AttributeError, match="weight_xx"):
        module.gate("weight_xx", "f")


@cells
@kinds
def test_copies_and_pickles_compute_the_same(name: str, make: Any) -> None:
    module = make(name)
    x = random(*([TIME, BATCH] if make is recurrent else [BATCH]), INPUT)
    inputs = inputs_of(module, 1, BATCH, HIDDEN) if make is recurrent else inputs_of(module, BATCH, HIDDEN)
    expected = tensors(module(x, **inputs))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))]
    copies.append(torch.load(file, weights_only=False))
    other = make(name)
    other.load_state_dict(module.state_dict())
    for one in (*copies, other):
        assert one.cell is ZOO[name]
        assert_close(tensors(one(x, **inputs)), expected)


def test_cells_that_nobody_else_has_are_pickled_whole() -> None:
    @fastrnn.cell
    def local(x: Any, u: Any, h: Any, *, p: Any) -> Any:
        return tanh(x.a + u.a + p * h)

    module = fastrnn.Recurrent(local, INPUT, HIDDEN, backend="reference")
    x = torch.randn(TIME, BATCH, INPUT)
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(x)[0], module(x)[0])
    assert again.cell == local


def test_two_cells_of_one_name_are_two() -> None:
    def made(function: Any) -> Any:
        @fastrnn.cell
        def same(x: Any, u: Any, h: Any) -> Any:
            return function(x.a + u.a)

        return same

    one, two = (fastrnn.Recurrent(made(f), INPUT, HIDDEN, backend="reference") for f in (tanh, sigmoid))
    two.load_state_dict(one.state_dict())
    x = torch.randn(TIME, BATCH, INPUT)
    results = [one(x)[0], two(x)[0]]
    assert results[0].min() < 0 < results[1].min()
    again = [pickle.loads(pickle.dumps(module))(x)[0] for module in (one, two)]
    assert all(torch.equal(a, b) for a, b in zip(again, results, strict=True))


def test_another_cell_takes_effect() -> None:
    """Of the same parameters; and what is no cell is refused."""

    @fastrnn.cell
    def elman(x: Any, u: Any, h: Any) -> Any:
        return tanh(x.a + u.a)

    @fastrnn.cell
    def bounded(x: Any, u: Any, h: Any) -> Any:
        return sigmoid(x.a + u.a)

    module, x = fastrnn.Recurrent(elman, INPUT, HIDDEN, dtype=torch.float64, backend="reference"), random(5, 3, INPUT)
    for _ in range(2):
        for cell in (elman, bounded):
            module.cell = cell
            with torch.no_grad():
                for _ in range(3):
                    assert_by_loops(module, x)
    with pytest.raises(TypeError, match=r"Recurrent: cell must be what fastrnn\.cell makes of a function, got str"):
        module.cell = "lstm"
    module.cell = ZOO["cifg"]
    with pytest.raises(RuntimeError, match=r"need a weight_ih of shape \(18, 4\), got \(6, 4\)"):
        module(x)


def test_repr() -> None:
    assert repr(recurrent("peephole_lstm")) == "Recurrent(peephole_lstm, 4, 6, backend='reference')"
    module = recurrent("star", num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True)
    options = "bias=False, num_layers=2, batch_first=True, dropout=0.5, bidirectional=True"
    assert options in repr(module)
    assert repr(fastrnn.RecurrentCell(peephole_lstm, 3, 4)) == "RecurrentCell(peephole_lstm, 3, 4)"
    assert (
        repr(fastrnn.RecurrentCell(peephole_lstm, 3, 4).eval().prepack())
        == "RecurrentCell(peephole_lstm, 3, 4, prepacked)"
    )


@pytest.mark.parametrize(
    ("attribute", "value", "error"),
    [
        (
            "hidden_size",
            7,
            r"Recurrent: input_size=4 and hidden_size=7 need a weight_ih of shape \(28, 4\), got \(24, 4\)",
        ),
        (
            "input_size",
            5,
            r"Recurrent: input_size=5 and hidden_size=6 need a weight_ih of shape \(24, 5\), got \(24, 4\)",
        ),
        ("num_layers", 0, "num_layers must be greater than zero"),
        ("dropout", 2, "dropout should be a number in range"),
        ("num_layers", 3, "object has no attribute 'weight_ih_l2'"),
    ],
)
def test_attributes_that_no_longer_fit_are_found(attribute: str, value: Any, error: str) -> None:
    module, x = recurrent("peephole_lstm", num_layers=2), random(TIME, BATCH, INPUT)
    module(x)
    setattr(module, attribute, value)
    for _ in range(2):
        with pytest.raises((RuntimeError, ValueError, AttributeError), match=error):
            module(x)
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError, AttributeError), match=error):
        module(x)


def test_attributes_that_fit_take_effect() -> None:
    module, x = recurrent("zoneout_lstm", num_layers=2, bidirectional=True), random(TIME, BATCH, INPUT)
    for _ in range(2):
        assert_by_loops(module, x)
    module.num_layers = 1
    assert_by_loops(module, x)
    module.batch_first = True
    inputs = inputs_of(module, 1, 1, HIDDEN)
    assert module(x, **inputs)[1][0].shape == (2, TIME, HIDDEN)


def test_on_the_meta_device_shapes_are_told() -> None:
    for name in ("zoneout_lstm", "slstm", "indrnn"):
        module = recurrent(name, num_layers=2, bidirectional=True, device="meta")
        inputs = {key: torch.empty((), device="meta", dtype=torch.float64) for key in module.cell.inputs}
        output, finals = module(torch.empty(TIME, BATCH, INPUT, device="meta", dtype=torch.float64), **inputs)
        assert output.is_meta
        assert output.shape == (TIME, BATCH, 2 * HIDDEN)
        assert [final.shape for final in tensors(finals)] == [(4, BATCH, HIDDEN)] * len(module.cell.states)
        module.to_empty(device="cpu").reset_parameters()
        assert_by_loops(module, random(TIME, BATCH, INPUT))


class Doubled(nn.Module):
    """The simplest parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("name", ["peephole_lstm", "indrnn"])
@pytest.mark.parametrize(
    "change",
    [
        lambda module, name: parametrize.register_parametrization(module, name, Doubled()),
        lambda module, name: prune.l1_unstructured(module, name, amount=0.3),
        lambda module, name: parametrizations.weight_norm(module, name) if getattr(module, name).dim() > 1 else None,
    ],
    ids=["parametrize", "prune", "weight_norm"],
)
def test_what_stands_in_for_a_parameter_takes_effect(name: str, change: Any) -> None:
    module, x = recurrent(name, num_layers=2), random(TIME, BATCH, INPUT)
    assert_by_loops(module, x)
    for parameter in ("weight_ih_l0", *(f"{p}_l1" for p in module.cell.parameters)):
        change(module, parameter)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.75)
    assert_by_loops(module, x)
    with torch.no_grad():
        assert_by_loops(module, x)


@cells
def test_functional_call_and_tied_weights(name: str) -> None:
    module, x = recurrent(name, num_layers=2), random(TIME, BATCH, INPUT)
    inputs = inputs_of(module)
    module(x, **inputs)
    other = recurrent(name, num_layers=2)
    got = torch.func.functional_call(module, dict(other.named_parameters()), (x,), inputs)
    assert_close(tensors(got), tensors(other(x, **inputs)))
    other.bias_ih_l1 = other.bias_ih_l0
    states = states_of(other)
    got, expected = other(x, as_hx(states), **inputs), by_loops(other, x, states, inputs=[*inputs.values()])
    assert_close(tensors(got), [expected[0], *expected[1]])
    (d,), (wanted,) = (gradients((result[0],), [other.bias_ih_l0]) for result in (got, expected))
    assert_close(d, wanted)


@cells
def test_converted_to_another_dtype(name: str) -> None:
    module, x = recurrent(name), random(TIME, BATCH, INPUT)
    module(x, **inputs_of(module))
    module.float()
    assert module(x.float(), **inputs_of(module))[0].dtype == torch.float32
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.float64\) does not match weight dtype"):
        module(x, **inputs_of(module))


@cells
def test_prepacked_and_changed(name: str) -> None:
    module, x = recurrent(name, num_layers=2).eval().prepack(), random(TIME, BATCH, INPUT)
    with torch.no_grad():
        for _ in range(3):
            for _ in range(3):
                assert_by_loops(module, x)
            for parameter in module.parameters():
                parameter.mul_(0.9)


def test_two_threads_call_one_module() -> None:
    module, failed = recurrent("peephole_lstm", num_layers=2), []

    def work(batch: int) -> None:
        try:
            for _ in range(10):
                x = random(TIME, batch, INPUT, grad=True)
                states = states_of(module, 2, batch, HIDDEN)
                output, finals, _ = by_loops(module, x, states)
                got = tensors(module(x, states))
                assert_close(got, [output, *finals])
                assert_close(gradients(got, [x]), gradients([output, *finals], [x]))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
