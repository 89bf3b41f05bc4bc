"""What `Recurrent` and `RecurrentCell` refuse: torch.nn's errors where it has the like, and names that users know."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from tests.cells.zoo import ZOO, peephole_lstm
from tests.layers.plain_loops import recurrent, single
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_same_error, error_of


def zeros(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **{"dtype": torch.float64, **options})


def freed() -> Tensor:
    tensor = zeros(HIDDEN)
    tensor.untyped_storage().resize_(0)
    return tensor


def assert_refused(call: Any, kind: type, message: str) -> None:
    error = error_of(call)
    assert type(error) is kind or (kind is RuntimeError and isinstance(error, kind)), error
    assert message in str(error)
    assert not any(cell.key in str(error) for cell in ZOO.values())


@pytest.mark.parametrize("make", [fastrnn.Recurrent, fastrnn.RecurrentCell], ids=["layers", "step"])
@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "cell must be what fastrnn.cell makes of a function, got NoneType"),
        ("lstm", "cell must be what fastrnn.cell makes of a function, got str"),
        (
            lambda x, h: h,
            "cell must be what fastrnn.cell makes of a function, got function: write @fastrnn.cell above it",
        ),
    ],
    ids=["nothing", "name", "function"],
)
def test_cells_that_are_none(make: Any, cell: Any, message: str) -> None:
    assert_refused(lambda: make(cell, INPUT, HIDDEN), TypeError, f"{make.__name__}: {message}")


@pytest.mark.parametrize("sizes", [(3.0, 4), (3, 4.0), ("3", 4), (0, 4), (-1, 4), (3, 0), (3, -1)], ids=str)
def test_sizes_are_refused_as_by_torch(sizes: Any) -> None:
    assert_same_error(lambda: fastrnn.Recurrent(peephole_lstm, *sizes), lambda: nn.LSTM(*sizes))


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 0},
        {"num_layers": -1},
        {"dropout": 2},
        {"dropout": True},
        {"bias": 1},
        {"batch_first": "yes"},
        {"dtype": torch.int32},
    ],
    ids=str,
)
def test_options_are_refused_as_by_torch(options: dict[str, Any]) -> None:
    assert_same_error(lambda: fastrnn.Recurrent(peephole_lstm, 3, 4, **options), lambda: nn.LSTM(3, 4, **options))


def test_dropout_of_one_layer_is_warned_of_as_by_torch() -> None:
    with pytest.warns(UserWarning, match="dropout") as ours:
        fastrnn.Recurrent(peephole_lstm, 3, 4, dropout=0.5)
    with pytest.warns(UserWarning, match="dropout") as theirs:
        nn.LSTM(3, 4, dropout=0.5)
    assert str(ours[0].message) == str(theirs[0].message)
    assert ours[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"init": [1]}, TypeError, "init must be a mapping from parameters' names to functions or numbers, got list"),
        ({"init": {"p_i": "one"}}, TypeError, "init of p_i must be a function or a number, got str"),
        ({"init": {"p_i_l0": 1}}, ValueError, "init names 'p_i_l0', the parameters of peephole_lstm are weight_ih, "),
        (
            {"init": {"bias_ih": 1}, "bias": False},
            ValueError,
            "init names 'bias_ih', the parameters of peephole_lstm",
        ),
        ({"backend": "fast"}, ValueError, "unknown backend 'fast'; expected one of 'auto', 'numba'"),
        ({"proj_size": 2}, TypeError, "got an unexpected keyword argument 'proj_size'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [fastrnn.Recurrent, fastrnn.RecurrentCell], ids=["layers", "step"])
def test_own_options(make: Any, options: dict[str, Any], kind: type, message: str) -> None:
    assert_refused(lambda: make(peephole_lstm, 3, 4, **options), kind, message)


H0 = (1, BATCH, HIDDEN)
TWO = (zeros(*H0), zeros(*H0))


@pytest.mark.parametrize(
    "hx",
    [
        (*TWO, zeros(*H0)),
        (zeros(*H0), zeros(1, BATCH, 5)),
        (zeros(*H0), zeros(BATCH, HIDDEN)),
        (zeros(1, 7, HIDDEN), zeros(1, 7, HIDDEN)),
        (zeros(2, BATCH, HIDDEN), zeros(2, BATCH, HIDDEN)),
        (zeros(*H0, dtype=torch.float32), zeros(*H0)),
    ],
    ids=["three", "width", "dimensions", "batch", "layers", "dtype"],
)
def test_two_states_are_refused_as_by_torchs_lstm(hx: Any) -> None:
    x, theirs = zeros(TIME, BATCH, INPUT), nn.LSTM(INPUT, HIDDEN, dtype=torch.float64)
    got, expected = error_of(lambda: recurrent("peephole_lstm")(x, hx)), error_of(lambda: theirs(x, hx))
    assert type(got) is type(expected)
    assert str(got) == str(expected).replace("lstm", "recurrent") or "dtype" in str(got)


@pytest.mark.parametrize(
    "hx", [zeros(1, BATCH, 5), zeros(BATCH, HIDDEN), zeros(1, 7, HIDDEN), zeros(2, BATCH, HIDDEN)], ids=str
)
def test_one_state_is_refused_as_by_torchs_gru(hx: Any) -> None:
    x, theirs = zeros(TIME, BATCH, INPUT), nn.GRU(INPUT, HIDDEN, dtype=torch.float64)
    assert_same_error(lambda: recurrent("indrnn")(x, hx), lambda: theirs(x, hx))


@pytest.mark.parametrize(
    ("name", "hx", "message"),
    [
        ("indrnn", (zeros(*H0),), "Recurrent: hx must be a tensor, got tuple"),
        ("indrnn", "zero", "Recurrent: hx must be a tensor, got str"),
        ("peephole_lstm", zeros(*H0), "Recurrent: hx must be a tuple of 2 tensors (h, c), got a Tensor"),
        ("peephole_lstm", (zeros(*H0), None), "Recurrent: hx must be a tuple of 2 tensors (h, c), got other elements"),
        ("slstm", {"h": 1}, "Recurrent: hx must be a tuple of 4 tensors (h, c, n, m), got a dict"),
    ],
    ids=str,
)
def test_other_forms_of_states(name: str, hx: Any, message: str) -> None:
    assert_refused(lambda: recurrent(name)(zeros(TIME, BATCH, INPUT), hx), TypeError, message)
    step = message.replace("Recurrent", "RecurrentCell")
    assert_refused(lambda: single(name)(zeros(BATCH, INPUT), hx), TypeError, step)


def test_states_are_counted() -> None:
    x = zeros(TIME, BATCH, INPUT)
    for name, count, expected in (("peephole_lstm", 1, "two"), ("slstm", 3, "4")):
        message = f"recurrent expects {expected} hidden states"
        given = [zeros(*H0)] * count
        assert_refused(lambda name=name, given=given: recurrent(name)(x, given), RuntimeError, message)
    wrong = [zeros(*H0)] * 3 + [zeros(BATCH, HIDDEN)]
    message = "For batched 3-D input, all states should also be 3-D but got (3-D, 3-D, 3-D, 2-D) tensors"
    assert_refused(lambda: recurrent("slstm")(x, wrong), RuntimeError, message)


@pytest.mark.parametrize(
    "x",
    [
        zeros(TIME, BATCH, 3),
        zeros(INPUT),
        zeros(1, 1, 1, INPUT),
        zeros(TIME, BATCH, INPUT, dtype=torch.float32),
        zeros(TIME, BATCH, INPUT, device="meta"),
    ],
    ids=["size", "1D", "4D", "dtype", "device"],
)
def test_inputs_are_refused_as_by_torch(x: Any) -> None:
    theirs = nn.LSTM(INPUT, HIDDEN, dtype=torch.float64)
    got, expected = error_of(lambda: recurrent("peephole_lstm")(x)), error_of(lambda: theirs(x))
    assert (type(got), str(got)) == (type(expected), str(expected).replace("LSTM", "Recurrent"))


@pytest.mark.parametrize("x", [zeros(BATCH, 3), zeros(1, 1, INPUT)], ids=str)
def test_inputs_of_steps_are_refused_as_by_torch(x: Any) -> None:
    theirs = nn.LSTMCell(INPUT, HIDDEN, dtype=torch.float64)
    got, expected = error_of(lambda: single("peephole_lstm")(x)), error_of(lambda: theirs(x))
    assert (type(got), str(got)) == (type(expected), str(expected).replace("LSTMCell", "RecurrentCell"))


@pytest.mark.parametrize(
    "hx", [(zeros(7, HIDDEN), zeros(7, HIDDEN)), (zeros(BATCH, HIDDEN), zeros(BATCH, 5))], ids=["batch", "width"]
)
def test_states_of_steps_are_refused_as_by_torch(hx: Any) -> None:
    x, theirs = zeros(BATCH, INPUT), nn.LSTMCell(INPUT, HIDDEN, dtype=torch.float64)
    assert_same_error(lambda: single("peephole_lstm")(x, hx), lambda: theirs(x, hx))


K = zeros()
WRONG_INPUTS: dict[str, tuple[dict[str, Any], type, str]] = {
    "none": ({}, TypeError, "{label}.forward() needs keep_h, keep_c: the cell zoneout_lstm takes them in every step"),
    "one": ({"keep_h": K}, TypeError, "{label}.forward() needs keep_c: the cell zoneout_lstm takes it in every step"),
    "unknown": (
        {"keep_h": K, "keep_c": K, "keep": K},
        TypeError,
        "{label}.forward() got an unexpected keyword argument 'keep'",
    ),
    "number": ({"keep_h": K, "keep_c": 0.5}, TypeError, "{operator}: keep_c must be a tensor, got float"),
    "dtype": (
        {"keep_h": K.float(), "keep_c": K},
        RuntimeError,
        "{operator}: keep_h must have the input's dtype torch.float64, got torch.float32",
    ),
    "bool": (
        {"keep_h": K, "keep_c": K.bool()},
        RuntimeError,
        "{operator}: keep_c must have the input's dtype torch.float64, got torch.bool",
    ),
    "width": ({"keep_h": K, "keep_c": zeros(BATCH, 7)}, ValueError, "{operator}: keep_c must be broadcastable to ("),
    "empty": ({"keep_h": K, "keep_c": zeros(0)}, ValueError, "{operator}: keep_c must be broadcastable to ("),
    "dimensions": (
        {"keep_h": K, "keep_c": zeros(1, 1, 1, 1, HIDDEN)},
        ValueError,
        "{operator}: keep_c must be broadcastable to (",
    ),
    "device": (
        {"keep_h": K, "keep_c": zeros(device="meta")},
        RuntimeError,
        "{operator}: keep_c must be on the input's device cpu, got meta",
    ),
    "sparse": (
        {"keep_h": K, "keep_c": zeros(HIDDEN).to_sparse()},
        RuntimeError,
        "{operator}: keep_c must be dense, got torch.sparse_coo",
    ),
    "freed": (
        {"keep_h": freed(), "keep_c": K},
        RuntimeError,
        "{operator}: keep_h has a non-zero number of elements, but its data is not allocated",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_INPUTS)
def test_inputs_of_the_steps(mistake: str) -> None:
    inputs, kind, message = WRONG_INPUTS[mistake]
    for module, x in (
        (recurrent("zoneout_lstm"), zeros(TIME, BATCH, INPUT)),
        (single("zoneout_lstm"), zeros(BATCH, INPUT)),
    ):
        label = type(module).__name__
        expected = message.format(label=label, operator=label.lower())
        assert_refused(lambda module=module, x=x: module(x, **inputs), kind, expected)


@pytest.mark.parametrize(
    ("options", "x", "shape", "expected"),
    [
        ({}, zeros(5, 2, 4), (2, 5, 6), "(layers·directions=4, T=5, B=2, H=6), got (2, 5, 6)"),
        ({"batch_first": True}, zeros(2, 5, 4), (5, 2, 6), "(layers·directions=4, B=2, T=5, H=6), got (5, 2, 6)"),
        ({}, zeros(5, 4), (5, 2, 6), "(layers·directions=4, T=5, H=6), got (5, 2, 6)"),
    ],
    ids=["time first", "batch first", "unbatched"],
)
def test_what_inputs_broadcast_to_is_told(options: Any, x: Tensor, shape: Any, expected: str) -> None:
    module = recurrent("zoneout_lstm", num_layers=2, bidirectional=True, **options)
    message = f"recurrent: keep_h must be broadcastable to {expected}"
    assert_refused(lambda: module(x, keep_h=zeros(*shape), keep_c=K), ValueError, message)


@pytest.mark.parametrize("training", [True, False], ids=["gradients", "none"])
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"lengths": [1]}, ValueError, f"recurrent: lengths must be integers of shape (B={BATCH},)"),
        ({"lengths": [6, 1, 1]}, ValueError, "peephole_lstm: lengths must lie within [0, T=5], got 6 at index 0"),
        ({"resets": [True]}, TypeError, f"recurrent: resets must be bool of shape (T={TIME}, B={BATCH}), got list"),
        ({"dropped": 1}, TypeError, "Recurrent.forward() got an unexpected keyword argument 'dropped'"),
    ],
    ids=["count", "range", "resets", "unknown"],
)
def test_own_arguments(training: bool, options: dict[str, Any], kind: type, message: str) -> None:
    with torch.set_grad_enabled(training):
        assert_refused(lambda: recurrent("peephole_lstm")(zeros(TIME, BATCH, INPUT), **options), kind, message)


def written(argument: str) -> Any:
    """A cell that takes this keyword."""
    names = {"fastrnn": fastrnn, "Step": fastrnn.cells.Step}
    exec(f"@fastrnn.cell\ndef own(x, u, h, *, {argument}): return x.a + u.a + {argument.split(':')[0]} * h", names)
    return names["own"]


def test_cells_cannot_call_their_own_as_modules_call_theirs() -> None:
    modules = recurrent("star"), single("star")
    theirs = {name for module in modules for name in dir(module)}
    arguments = {name for module in modules for name in signature(type(module).forward).parameters} - {"inputs"}
    for name in sorted({name for name in theirs if name[0] != "_" and not name.endswith("_l0")} | arguments):
        assert_refused(lambda: written(name), fastrnn.cells.CellError, f"{name} is what layers call one of their own")  # noqa: B023
    for name in sorted(arguments):
        assert_refused(lambda: written(f"{name}: Step"), fastrnn.cells.CellError, f"{name} is what layers call")  # noqa: B023
    x = zeros(BATCH, INPUT)
    step = fastrnn.RecurrentCell(written("gate: Step"), INPUT, HIDDEN, dtype=x.dtype, backend="reference")
    assert step(x, gate=zeros(HIDDEN)).shape == (BATCH, HIDDEN)


def test_parameters_that_do_not_fit() -> None:
    x = zeros(TIME, BATCH, INPUT)
    for name, shape in (("weight_hh_l0", (24, 5)), ("p_i_l0", (5,))):
        module = recurrent("peephole_lstm")
        setattr(module, name, nn.Parameter(zeros(*shape)))
        assert_refused(lambda: module(x), RuntimeError, "recurrent: the weights of layer 0 must have shapes [(24, 4), ")  # noqa: B023
    module = recurrent("peephole_lstm")
    module.p_i_l0.data.untyped_storage().resize_(0)
    assert_refused(
        lambda: module(x), RuntimeError, "recurrent: a parameter has a non-zero number of elements, but its "
    )


def test_backends_that_cannot_name_the_cell() -> None:
    module, x = recurrent("peephole_lstm", backend=None), zeros(TIME, BATCH, INPUT)
    for backend, reason in (
        ("aten", "torch has no kernels for peephole_lstm"),
        ("cuda", "it takes CUDA tensors only, got cpu"),
    ):
        with fastrnn.use_backend(backend):
            message = f"peephole_lstm: backend '{backend}' cannot serve this call: {reason}"
            assert_refused(lambda: module(x), RuntimeError, message)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("make", [recurrent, single], ids=["layers", "step"])
def test_torchscript_is_refused_without_advice_that_does_not_help(make: Any) -> None:
    error = error_of(lambda: torch.jit.script(make("peephole_lstm")))
    assert isinstance(error, NotImplementedError)
    assert str(error).endswith("use torch.compile or torch.export")
