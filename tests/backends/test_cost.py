"""What `auto` goes by on the CPU: predicted times, and for which sizes they are asked."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

import fastrnn
from benchmarks.cost import fitting
from fastrnn.backends import cost
from fastrnn.backends.cost import Sizes

CELL_NAMES = ("rnn_tanh", "rnn_relu", "gru", "lstm")
SIZES = Sizes("lstm", 20, 8, 40, 48, 48, threads=1)


def test_the_table_has_every_row_and_every_term() -> None:
    assert cost.TABLE.keys() == set(fitting.names())
    for row in cost.TABLE.values():
        assert len(row) == len(cost.TERMS) == len(cost.terms(SIZES))
        assert min(row) >= 0 < max(row)


@pytest.mark.parametrize("cell_name", CELL_NAMES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", cost.DTYPES)
def test_more_work_never_takes_less(cell_name: str, training: bool, dtype: torch.dtype) -> None:
    """On one thread: a second one begins to help only where there is work for it.

    Sizes fill no whole lines of a cache when they are doubled: those that do are sooner multiplied.
    """
    for steps, batch, inputs, hidden in product((5, 50), (40, 80), (1, 301), (17, 301)):
        sizes = Sizes(cell_name, steps, batch, inputs, hidden, hidden, dtype=dtype, training=training, threads=1)
        before = cost.predicted(sizes)
        for field in ("steps", "batch", "inputs", "directions", "layers"):
            after = cost.predicted(sizes._replace(**{field: 2 * getattr(sizes, field)}))
            assert all(after[engine] >= before[engine] for engine in cost.ENGINES)
        wider = cost.predicted(sizes._replace(hidden=2 * hidden, outputs=2 * hidden))
        assert all(wider[engine] >= before[engine] for engine in cost.ENGINES)


@pytest.mark.parametrize("cell_name", CELL_NAMES)
@pytest.mark.parametrize("is_cell", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_sizes_of_nothing_take_some_time(cell_name: str, is_cell: bool, training: bool) -> None:
    for steps, batch, inputs in product((0, 1), repeat=3):
        seconds = cost.predicted(Sizes(cell_name, steps, batch, inputs, 1, 1, training=training, is_cell=is_cell))
        assert min(seconds.values()) >= 0


def test_sizes_that_are_tensors_are_numbers() -> None:
    given = ("steps", "batch", "inputs", "hidden", "outputs")
    traced: Any = SIZES._replace(**{field: torch.tensor(getattr(SIZES, field)) for field in given})
    seconds = cost.predicted(traced)
    assert seconds == cost.predicted(SIZES)
    assert all(type(each) is float for each in seconds.values())


def test_threads_are_torchs_where_none_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    large = SIZES._replace(batch=200)
    assert cost.predicted(large._replace(threads=0)) == cost.predicted(large._replace(threads=2))


def test_layers_above_the_first_read_its_output() -> None:
    wide = SIZES._replace(inputs=500, directions=2)
    first, above = cost.predicted(wide), cost.predicted(wide._replace(inputs=2 * wide.outputs))
    three = cost.predicted(wide._replace(layers=3))
    assert three == pytest.approx({engine: first[engine] + 2 * above[engine] for engine in cost.ENGINES})


def test_ways_are_told_apart() -> None:
    def ways(**changes: Any) -> tuple[str, str]:
        numba, aten = cost.rows(SIZES._replace(**changes))
        assert numba.startswith("numba ")
        assert aten.startswith("aten ")
        return numba.removeprefix("numba ").split(":")[0], aten.removeprefix("aten ").split(":")[0]

    assert ways() == ("packed", "sequence")
    assert ways(training=True) == ("training", "sequence, training")
    assert ways(steps=1) == ("unpacked", "step")
    assert ways(steps=1, training=True) == ("training", "step, training")
    assert ways(steps=1, training=True, is_cell=True) == ("step, training", "step, training")
    assert ways(steps=1, directions=2) == ("packed", "sequence")
    assert ways(steps=1, layers=2) == ("unpacked", "sequence")
    assert ways(steps=1, outputs=9) == ("packed", "sequence")
    assert ways(steps=1, dtype=torch.bfloat16) == ("packed", "step")
    assert cost.rows(SIZES._replace(outputs=9, dtype=torch.float64))[0] == "numba packed: lstm projected float64"
    assert cost.rows(SIZES._replace(cell_name="rnn_relu")) == cost.rows(SIZES._replace(cell_name="rnn_tanh"))


def test_many_inputs_of_few_units_are_numbas() -> None:
    """By hidden units and steps alone they were torch's, and took twice the time."""
    sizes = Sizes("lstm", 5, 500, 510, 32, 32, training=True, threads=2)
    assert cost.why_torch(sizes) is None


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_lstms_are_torchs(training: bool) -> None:
    sizes = Sizes("lstm", 100, 32, 256, 256, 256, dtype=torch.bfloat16, training=training, threads=2)
    assert cost.why_torch(sizes) is not None


def predict(monkeypatch: pytest.MonkeyPatch, numba: float, aten: float) -> list[Sizes]:
    """Has these times predicted of every call -> what they were asked for."""
    asked: list[Sizes] = []

    def predicted(sizes: Sizes) -> dict[str, float]:
        asked.append(sizes)
        return {"numba": numba, "aten": aten}

    monkeypatch.setattr(cost, "predicted", predicted)
    return asked


def test_the_reason_has_both_times_and_a_tie_is_numbas(monkeypatch: pytest.MonkeyPatch) -> None:
    predict(monkeypatch, numba=6.34e-4, aten=4.1e-5)
    assert cost.why_torch(SIZES) == "predicted 41 µs, numba 634 µs"
    predict(monkeypatch, numba=2.0, aten=0.00123)
    assert cost.why_torch(SIZES) == "predicted 1.23 ms, numba 2e+03 ms"
    predict(monkeypatch, numba=1.0, aten=1.0)
    assert cost.why_torch(SIZES) is None


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_what_is_asked_for_a_call(kind: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = predict(monkeypatch, numba=2.0, aten=1.0)
    is_cell = kind.endswith("Cell")
    options = {} if is_cell else {"num_layers": 2, "bidirectional": True}
    module = getattr(fastrnn, kind)(3, 5, **options)
    x = torch.zeros(*(() if is_cell else (7,)), 2, 3)
    with torch.set_grad_enabled(training):
        module(x)
        module(x)
    assert len(asked) == 1  # the second call's plan is kept
    assert asked[0][1:] == (
        *((1, 2, 3, 5, 5, 1, 1) if is_cell else (7, 2, 3, 5, 5, 2, 2)),
        *(torch.float32, training, is_cell, 0),
    )


def test_explanations_tell_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm, cell, x = fastrnn.LSTM(3, 4), fastrnn.GRUCell(3, 4), torch.zeros(5, 2, 3)
    asked = predict(monkeypatch, numba=3e-5, aten=2e-5)
    for explanation in (fastrnn.explain(lstm, x), fastrnn.explain(cell, x[0])):
        assert all(sizes.training for sizes in asked)
        assert explanation.layers == ["aten"]
        assert explanation.reasons["aten"] == "taken: predicted 20 µs, numba 30 µs"
    predict(monkeypatch, numba=3e-5, aten=4e-3)
    for explanation in (fastrnn.explain(lstm, x), fastrnn.explain(cell, x[0])):
        assert explanation.layers == ["numba"]
        assert explanation.reasons["numba"] == "taken: predicted 30 µs, aten 4 ms"
    # Where nothing was compared, nothing is said of it.
    assert fastrnn.explain(lstm, x, resets=torch.zeros(5, 2).bool()).reasons["numba"] == "taken"
    with fastrnn.use_backend("numba"):
        assert fastrnn.explain(lstm, x).reasons["numba"] == "taken"
