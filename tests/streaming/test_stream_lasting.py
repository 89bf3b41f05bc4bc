"""Streams that go on for long: they leak nothing and stay the loop that they are."""

from __future__ import annotations

import copy
import gc
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import fastrnn
from tests.streaming.streams import same, steps_of
from tests.tolerances import assert_accurate

CALLS = 100_000
INPUT, HIDDEN = 8, 16


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_many_calls_are_the_loop() -> None:
    module, period = fastrnn.GRU(INPUT, HIDDEN), 1000
    x = torch.randn(period, 1, INPUT)
    rows = list(x)
    with fastrnn.stream(module) as stream:
        for _ in range(CALLS // period - 1):
            for row in rows:
                stream(row)
        before = stream.state
        output = torch.cat([stream(row).clone() for row in rows])[:, None]
        state = stream.state
    # What lies far behind has been forgotten: the last calls alone are looped over, from the state before them.
    truth, truth_state = steps_of(copy.deepcopy(module).double(), x.double(), before.double())
    single, single_state = steps_of(module, x, before)
    assert_accurate("output", output, truth, single)
    assert_accurate("state", state, truth_state, single_state)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_calls_leak_nothing(threads: int) -> None:
    """Of any kind: those that go straight to the kernel, others, and wrong ones."""
    module = fastrnn.LSTM(INPUT, HIDDEN)
    stream = fastrnn.stream(module, batch=3, steps=2, slots=9, threads=threads)
    x, wide, array = torch.randn(3, INPUT), torch.randn(3, 2 * INPUT)[:, ::2], np.zeros((2, 3, INPUT), np.float32)
    out, index, numbers = torch.empty(3, HIDDEN), torch.tensor([1, 5, 2]), [3, 1, 8]
    objects = (x, wide, array, out, index, numbers, stream, module)

    def calls(count: int) -> None:
        for _ in range(count):
            stream(x, slots=index)
            stream(x, out=out, slots=index)
            stream(array, slots=index)
            stream(wide, slots=numbers)
            stream(x[:2], slots=numbers[:2])
            for wrong in ([0, 0, 1], index[:2]):
                with suppress(ValueError):
                    stream(x, slots=wrong)
            stream.state = stream.state
            stream.reset([1])

    calls(300)
    gc.collect()
    before, counts = resident(), [sys.getrefcount(each) for each in objects]
    calls(CALLS // 30)
    gc.collect()
    assert [sys.getrefcount(each) for each in objects] == counts
    assert resident() - before < 4 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_streams_leak_nothing() -> None:
    module, x = fastrnn.LSTM(64, 256), torch.randn(1, 64)

    def made(count: int) -> None:
        for number in range(count):
            stream = fastrnn.stream(module, weights="int8", threads=1 + number % 2)
            stream(x)
            stream.update()
            if number % 3:
                stream.close()

    made(20)
    gc.collect()
    before = resident()
    made(150)  # of 350 KB each
    gc.collect()
    assert resident() - before < 16 << 20


@pytest.mark.exhaustive
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_ten_million_calls(weights: str) -> None:
    """Of the same numbers in turn, about a minute: the state is that of a stream which saw them once."""
    module, period = fastrnn.LSTM(INPUT, HIDDEN), 10_000
    rows = list(torch.randn(period, 1, INPUT))
    with fastrnn.stream(module, weights=weights) as stream:
        for _ in range(1000):
            for row in rows:
                stream(row)
        late = stream.state
        assert all(state.isfinite().all() for state in late)
        y = torch.stack([stream(row).clone() for row in rows[:100]])
    with fastrnn.stream(module, weights=weights) as fresh:
        for row in rows:
            fresh(row)
        # States of two streams that began differently have met long before a whole period is over.
        torch.testing.assert_close(fresh.state, late, rtol=1e-5, atol=1e-6)
        fresh.state = late
        assert same(torch.stack([fresh(row).clone() for row in rows[:100]]), y)
