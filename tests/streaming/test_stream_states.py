"""States in the module's form, and the life of a stream."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from tests.selection import exhaustive
from tests.streaming.streams import assert_computes, bits, make, make_cell, same, steps_of, tensors

INPUT, HIDDEN, LAYERS, BATCH = 5, 9, 2, 3

kinds = pytest.mark.parametrize("kind", ["lstm", "gru", *exhaustive("slstm", "zoneout_lstm", "layer_norm_gru")])


def random_states(module: Any, *sizes: int) -> Any:
    states = tuple(torch.rand(*sizes, HIDDEN) + 0.5 for _ in range(len(tensors(module(torch.zeros(1, INPUT))[1]))))
    return states if len(states) > 1 else states[0]


@kinds
def test_states_go_to_and_fro(kind: str) -> None:
    """From a module into a stream, further, and back."""
    module = make(kind, INPUT, HIDDEN, LAYERS).eval()
    module.backend = "reference"
    x, hx = torch.randn(9, BATCH, INPUT), random_states(module, LAYERS, BATCH)
    assert_computes(module, x, (4,), hx)
    with fastrnn.stream(module, batch=BATCH, steps=9) as stream, torch.no_grad():
        _, middle = module(x[:4], hx)
        stream.state = middle
        assert same(stream.state, middle)
        stream(x[4:7])
        output, states = module(x[7:], stream.state)
        expected, _ = steps_of(module, x, hx)
        torch.testing.assert_close(output, expected[7:], rtol=1e-5, atol=1e-6)
        assert [state.shape for state in tensors(states)] == [state.shape for state in tensors(stream.state)]


def test_states_of_projections_and_cells() -> None:
    with fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN, LAYERS, proj_size=4), batch=BATCH) as stream:
        states = torch.randn(LAYERS, BATCH, 4), torch.randn(LAYERS, BATCH, HIDDEN)
        stream.state = states
        assert same(stream.state, states)
        stream.state = [state + 1 for state in states]
        assert same(stream.state, tuple(state + 1 for state in states))
    for kind, count in (("lstm", 2), ("gru", 1)):
        module = make_cell(kind, INPUT, HIDDEN)
        with fastrnn.stream(module, batch=BATCH) as stream:
            values = tuple(torch.randn(BATCH, HIDDEN) for _ in range(count))
            stream.state = values if count > 1 else values[0]
            assert same(stream.state, values)


def test_states_are_copies() -> None:
    with fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN)) as stream:
        stream(torch.randn(1, INPUT))
        states = stream.state
        before = [state.clone() for state in states]
        stream(torch.randn(1, INPUT))
        assert same(states, tuple(before))
        for state in states:
            assert not state.requires_grad
            state.zero_()
        assert (stream.state[0] != 0).all()
        given = tuple(torch.randn(1, 1, HIDDEN) for _ in range(2))
        stream.state = given
        kept = [state.clone() for state in given]
        stream(torch.randn(1, INPUT))
        assert same(given, tuple(kept))


def test_states_of_other_layouts() -> None:
    with fastrnn.stream(fastrnn.GRU(INPUT, HIDDEN, LAYERS), batch=BATCH) as stream:
        value = torch.randn(HIDDEN, BATCH, LAYERS, requires_grad=True).permute(2, 1, 0)
        stream.state = value
        assert same(stream.state, value.detach().contiguous())
        stream.state = torch.ones(1).expand(LAYERS, BATCH, HIDDEN)
        assert (stream.state == 1).all()
        imaginary = torch.randn(LAYERS, BATCH, HIDDEN, dtype=torch.complex64).conj().imag
        assert imaginary.is_neg()
        stream.state = imaginary
        assert torch.equal(stream.state, imaginary)


def wrong_states() -> list[tuple[Any, type[Exception], str]]:
    h = torch.ones(LAYERS, BATCH, HIDDEN)
    freed = h.clone()
    freed.untyped_storage().resize_(0)
    return [
        (h, TypeError, "tuple of 2 tensors"),
        ((h,), RuntimeError, "two hidden states"),
        ((h, h, h), RuntimeError, "two hidden states"),
        ((h, None), TypeError, "tuple of 2 tensors"),
        ((h, h.numpy()), TypeError, "tuple of 2 tensors"),
        ((h, h[:, :2]), RuntimeError, r"Expected hidden\[1\] size"),
        ((h, h[0]), RuntimeError, r"Expected hidden\[1\] size"),
        ((h, h.double()), ValueError, "float32, got float64"),
        ((h, h.long()), ValueError, "float32, got int64"),
        ((h, h.to("meta")), ValueError, "CPU, got meta"),
        ((h, h.to_sparse()), RuntimeError, "dense"),
        ((h, freed), RuntimeError, "freed"),
        (None, TypeError, "tuple of 2 tensors"),
        ("hc", TypeError, "tuple of 2 tensors"),
        (iter((h, h)), TypeError, "tuple of 2 tensors"),
    ]


@pytest.mark.parametrize("case", range(len(wrong_states())))
def test_wrong_states_change_nothing(case: int) -> None:
    value, error, text = wrong_states()[case]
    with fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN, LAYERS), batch=BATCH) as stream:
        stream(torch.randn(BATCH, INPUT))
        before = bits(stream.state)
        with pytest.raises(error, match=text):
            stream.state = value
        assert all(torch.equal(*pair) for pair in zip(before, bits(stream.state), strict=True))


def test_resets_of_rows() -> None:
    with fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN, LAYERS), batch=BATCH) as stream:
        stream(torch.randn(BATCH, INPUT))
        before = stream.state
        stream.reset(1)
        for state, kept in zip(stream.state, before, strict=True):
            assert (state[:, 1] == 0).all()
            assert same(state[:, [0, 2]], kept[:, [0, 2]])
        with pytest.raises(IndexError, match="row 3 is out of range: there are 3"):
            stream.reset([0, 3])
        stream.state = before
        x = torch.randn(BATCH, INPUT)
        stream.reset()
        assert same(stream(x), fastrnn.stream(stream.module, batch=BATCH)(x))


def test_a_closed_stream() -> None:
    with fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN), slots=4, threads=2) as stream:
        y = stream(torch.randn(1, INPUT), slots=[1])
        kept = y.clone()
    for _ in range(2):
        stream.close()
    uses: list[Any] = [
        lambda: stream(torch.randn(1, INPUT), slots=[1]),
        lambda: stream(torch.randn(1, INPUT), slots=torch.tensor([1])),
        lambda: stream(torch.randn(1, INPUT), slots=torch.tensor([1]), out=torch.empty(1, HIDDEN)),
        lambda: stream("x"),
        lambda: stream.state,
        lambda: setattr(stream, "state", (torch.zeros(1, 4, HIDDEN),) * 2),
        lambda: stream.reset(),
        lambda: stream.reset([1]),
        lambda: stream.update(),
        lambda: stream.stale,
        lambda: stream.error(torch.randn(3, 1, INPUT)),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="closed"):
            use()
    assert same(y, kept)
    assert "LSTM" in repr(stream)


def test_closed_by_an_error_within() -> None:
    with pytest.raises(KeyError), fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN), threads=2) as stream:
        raise KeyError
    with pytest.raises(RuntimeError, match="closed"):
        stream(torch.randn(1, INPUT))


def test_a_stream_that_nobody_has_is_gone() -> None:
    stream = fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN), threads=2)
    y = stream(torch.randn(1, INPUT))
    kept, dead, memory = y.clone(), weakref.ref(stream), weakref.ref(stream._memory)
    del stream
    gc.collect()
    assert dead() is None
    assert memory() is None
    assert same(y, kept)
    assert not any(thread.name.startswith("fastrnn stream") for thread in threading.enumerate())


def test_neither_copied_nor_pickled() -> None:
    stream = fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN))
    actions: list[Any] = [copy.copy, copy.deepcopy, pickle.dumps, lambda s: pickle.dumps({"a": s}, 5)]
    for action in actions:
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            action(stream)
    model = torch.nn.Module()
    model.stream = stream
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        copy.deepcopy(model)


def test_what_a_stream_tells_of_itself() -> None:
    module = fastrnn.LSTM(INPUT, HIDDEN)
    stream = fastrnn.stream(module, batch=2, steps=7, weights="int8", slots=9, threads=1)
    assert repr(stream) == "Stream(LSTM, batch=2, steps=7, slots=9, weights='int8', threads=1)"
    assert (stream.module, stream.batch, stream.steps, stream.slots, stream.weights, stream.threads) == (
        module,
        2,
        7,
        9,
        "int8",
        1,
    )
    assert repr(fastrnn.stream(module)) == "Stream(LSTM, batch=1, steps=1, weights='float32', threads=1)"


def test_the_output_is_the_same_memory() -> None:
    with fastrnn.stream(fastrnn.GRU(INPUT, HIDDEN), steps=4) as stream:
        first: Tensor = stream(torch.randn(4, 1, INPUT))
        second = stream(torch.randn(4, 1, INPUT))
        assert first.data_ptr() == second.data_ptr()
        assert same(first, second)
        assert stream(torch.randn(1, INPUT)).shape == (1, HIDDEN)
        assert stream(torch.randn(3, 1, INPUT)).shape == (3, 1, HIDDEN)
