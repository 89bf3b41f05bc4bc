"""States of many streams, of which a call steps some."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fastrnn
from tests.selection import exhaustive
from tests.streaming.streams import bits, make, same

INPUT, HIDDEN, SLOTS, BATCH, STEPS = 5, 19, 11, 6, 3


def slotted(kind: str = "lstm", **options: Any) -> fastrnn.Stream:
    return fastrnn.stream(make(kind, INPUT, HIDDEN, 2), batch=BATCH, steps=STEPS, slots=SLOTS, **options)


@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
@pytest.mark.parametrize("kind", ["lstm", *exhaustive("gru", "layer_norm_lstm", "minlstm")])
def test_slots_are_streams_of_their_own(kind: str, weights: str) -> None:
    """In any order, some each time, in chunks of any size: bitwise."""
    stream = slotted(kind, weights=weights)
    alone = [fastrnn.stream(stream.module, steps=STEPS, weights=weights) for _ in range(SLOTS)]
    for call in range(30):
        rows, steps = call % (BATCH + 1), 1 + call % STEPS
        index, x = torch.randperm(SLOTS)[:rows], torch.randn(steps, rows, INPUT)
        y = stream(x, slots=index)
        assert y.shape == (steps, rows, HIDDEN)
        for row, slot in enumerate(index.tolist()):
            assert same(y[:, row], alone[slot](x[:, row : row + 1])[:, 0])
        if call % 7 == 3:
            reset = torch.randperm(SLOTS)[:2]
            stream.reset(reset)
            for slot in reset.tolist():
                alone[slot].reset()
    for number, state in enumerate(stream.state if isinstance(stream.state, tuple) else (stream.state,)):
        assert state.shape == (2, SLOTS, HIDDEN)
        for slot, one in enumerate(alone):
            own = one.state[number] if isinstance(one.state, tuple) else one.state
            assert same(state[:, slot : slot + 1], own)


def test_what_says_which_slots() -> None:
    stream, x = slotted(), torch.randn(3, INPUT)
    expected = stream(x, slots=torch.tensor([9, 0, 4])).clone()
    given: list[Any] = [
        [9, 0, 4],
        (9, 0, 4),
        np.array([9, 0, 4]),
        np.array([4, 0, 9])[::-1],
        torch.tensor([9, 1, 0, 1, 4, 1])[::2],
        [np.int64(9), torch.tensor(0), 4],
        memoryview(np.array([9, 0, 4])),
    ]
    read_only = np.array([9, 0, 4])
    read_only.flags.writeable = False
    for value in [*given, read_only]:
        stream.reset()
        assert same(stream(x, slots=value), expected)
    expected = stream(x, slots=[3, 4, 5]).clone()
    stream.reset()
    assert not same(stream(x, slots=range(3, 6)), expected)
    stream.reset()
    stream(x, slots=[9, 0, 4])
    assert same(stream(x, slots=range(3, 6))[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        ([0, 11, 3], IndexError, "slot 11 is out of range: there are 11"),
        ([0, 3, -1], IndexError, "slot -1 is out of range"),
        ([0, 2**62, 3], IndexError, "out of range"),
        ([0, 2**70, 3], IndexError, "out of range"),
        ([5, 3, 5], ValueError, "slot 5 comes twice"),
        ([0, 3], ValueError, "a number for each row"),
        ([[0, 3, 4]], TypeError, "integers"),
        (torch.tensor([[0, 3, 4]]), ValueError, "a number for each row"),
        ([0.0, 3.0, 4.0], TypeError, "integers"),
        ([0, 1.5, 4], TypeError, "integers"),
        ([False, True, 2], TypeError, "integers"),
        ("abc", TypeError, "buffer protocol"),
        (7, TypeError, "buffer protocol"),
        (None, TypeError, "which of the 11"),
        ({0, 3, 4}, TypeError, "buffer protocol"),
        (torch.tensor([0, 3, 4], dtype=torch.int32), ValueError, "int64"),
        (torch.tensor([0.0, 3.0, 4.0]), ValueError, "int64"),
        (torch.tensor([True, False, True]), ValueError, "int64"),
        (torch.tensor([0, 3, 4], device="meta"), ValueError, "CPU"),
        (torch.tensor([0, 3, 4]).to_sparse(), RuntimeError, "dense"),
    ],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 2])
def test_wrong_slots_change_nothing(index: Any, error: type[Exception], text: str, threads: int) -> None:
    with slotted(threads=threads) as stream:
        y = stream(torch.randn(6, INPUT), slots=torch.arange(6))
        before, kept, out = bits(stream.state), y.clone(), torch.full((3, HIDDEN), 7.0)
        for options in ({}, {"out": out}):
            with pytest.raises(error, match=text):
                stream(torch.randn(3, INPUT), slots=index, **options)
        assert all(torch.equal(*pair) for pair in zip(before, bits(stream.state), strict=True))
        assert same(y, kept)
        assert (out == 7).all()
        x = torch.randn(3, INPUT)
        again = stream(x, slots=[0, 3, 5]).clone()  # and marks are gone
        stream.reset()
        assert not same(stream(x, slots=[0, 3, 5]), again)


def test_slots_where_there_are_none() -> None:
    with fastrnn.stream(fastrnn.LSTM(3, 4)) as stream, pytest.raises(TypeError, match="made with slots="):
        stream(torch.randn(1, 3), slots=[0])


def test_more_rows_than_the_batch() -> None:
    stream = slotted()
    with pytest.raises(RuntimeError, match="at most 6 rows, got 7"):
        stream(torch.randn(7, INPUT), slots=range(7))


def test_no_rows() -> None:
    stream, out = slotted(), torch.empty(0, HIDDEN)
    before = stream.state
    for index in ([], torch.tensor([], dtype=torch.int64), np.zeros(0, np.int64)):
        assert stream(torch.randn(0, INPUT), slots=index).shape == (0, HIDDEN)
        assert stream(torch.randn(2, 0, INPUT), slots=index).shape == (2, 0, HIDDEN)
        assert stream(torch.randn(0, INPUT), slots=index, out=out) is out
    assert same(stream.state, before)


def test_outputs_in_the_memory_of_slots() -> None:
    """The numbers are read to the end of the call, when outputs have been written over them."""
    memory = torch.zeros(3 * HIDDEN + 1)
    index = memory[:6].view(torch.int64)
    index.copy_(torch.tensor([9, 0, 4]))
    stream, x = slotted(), torch.randn(3, INPUT)
    expected = stream(x, slots=[9, 0, 4]).clone()
    states = stream.state
    stream.reset()
    out = memory[: 3 * HIDDEN].view(3, HIDDEN)
    assert same(stream(x, slots=index, out=out), expected)
    assert same(stream.state, states)


def test_resets_of_slots() -> None:
    stream = slotted()
    states = tuple(torch.randn(2, SLOTS, HIDDEN) for _ in range(2))
    mask = torch.zeros(SLOTS, dtype=torch.bool)
    mask[[2, 7]] = True
    for rows in ([2, 7], (7, 2, 7), torch.tensor([2, 7]), np.array([7, 2]), mask, mask.numpy()):
        stream.state = states
        stream.reset(rows)
        expected = [state.clone() for state in states]
        for state in expected:
            state[:, [2, 7]] = 0
        assert same(stream.state, tuple(expected))
    for rows in (3, np.int64(3), torch.tensor(3), range(3, 4)):
        stream.state = states
        stream.reset(rows)
        assert all((state[:, 3] == 0).all() and (state[:, 4] != 0).all() for state in stream.state)
    stream.state = states
    for rows in ([], torch.tensor([], dtype=torch.int64)):
        stream.reset(rows)
    wrong: list[tuple[Any, type[Exception]]] = [
        ([2, 11], IndexError),
        (-1, IndexError),
        ([2, 2**65], IndexError),
        (True, TypeError),
        ([True, False], TypeError),
        (1.5, TypeError),
        ("3", TypeError),
        ([1.5], TypeError),
        (slice(3), TypeError),
        (torch.tensor([1.5]), ValueError),
        (mask[:5], ValueError),
        (torch.tensor([[1]]), ValueError),
        (torch.tensor([1], device="meta"), ValueError),
    ]
    for rows, error in wrong:
        with pytest.raises(error):
            stream.reset(rows)
    assert same(stream.state, states)
    stream.reset()
    assert all((state == 0).all() for state in stream.state)
