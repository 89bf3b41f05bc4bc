"""Threads: those that help a stream's caller, and callers in several of them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import fastrnn
from tests.selection import exhaustive
from tests.streaming.streams import in_chunks, make, same

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others help on Linux only")
INPUT, HIDDEN = 20, 130
"""Several panels of every cell's weights, the last of them not whole."""


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastrnn stream")]


@contextmanager
def a_busy_machine() -> Iterator[None]:
    """Processes enough for every core."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def compared(kind: str, threads: int, weights: str, calls: int, **options: Any) -> None:
    """Outputs of each call and the last states are, bitwise, those of one thread."""
    module = make(kind, INPUT, HIDDEN, 2, **options)
    batch, steps = 3, 3
    one = fastrnn.stream(module, batch=batch, steps=steps, weights=weights)
    several = fastrnn.stream(module, batch=batch, steps=steps, weights=weights, threads=threads)
    with one, several:
        xs = torch.randn(16, steps, batch, INPUT)
        for call in range(calls):
            x = xs[call % 16, : 1 + call % steps] if call % 4 else xs[call % 16, 0]
            assert torch.equal(one(x), several(x)), call
            if call % 1000 == 999:
                time.sleep(0.01)  # whoever helps falls asleep
        assert same(one.state, several.state)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("weights", ["float32", *exhaustive("float16", "int8")])
@pytest.mark.parametrize("kind", ["lstm", *exhaustive("gru", "layer_norm_gru", "minlstm")])
def test_who_helps_changes_no_bit(kind: str, weights: str, threads: int) -> None:
    compared(kind, threads, weights, 2000)


def test_who_helps_changes_no_bit_of_projections() -> None:
    compared("lstm", 2, "int8", 500, proj_size=100)


@pytest.mark.parametrize("threads", [2, 3])
def test_beside_busy_processes(threads: int) -> None:
    with a_busy_machine():
        compared("lstm", threads, "float32", 500)


@pytest.mark.exhaustive
def test_many_calls_with_help() -> None:
    for weights in ("float32", "float16", "int8"):
        compared("lstm", 2, weights, 100_000)


@linux
def test_helpers_end_with_the_stream() -> None:
    assert not helpers()
    stream = fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN), threads=3)
    assert len(helpers()) == 2
    stream(torch.randn(1, INPUT))
    stream.close()
    assert not helpers()
    with fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN), threads=2):
        assert len(helpers()) == 1
    assert not helpers()
    stream = fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN), threads=2)
    stream.itself = stream  # which only the collector ends
    del stream
    gc.collect()
    assert not helpers()


@linux
def test_helpers_end_where_the_stream_could_not_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def third_fails(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", third_fails)
    with pytest.raises(RuntimeError, match="new thread"):
        fastrnn.stream(fastrnn.LSTM(INPUT, HIDDEN), threads=5)
    assert not helpers()


def test_no_more_panels_are_shared_than_can_be_counted() -> None:
    """Of a cell without a product, of which alone so many units have room."""
    module, x = make("minlstm", 1, 2**21 + 5), torch.randn(3, 1, 1)
    with fastrnn.stream(module) as one, fastrnn.stream(module, threads=2) as several:
        assert not helpers()
        for row in x:
            assert torch.equal(one(row), several(row))


def test_errors_in_between() -> None:
    module = fastrnn.LSTM(INPUT, HIDDEN)
    with fastrnn.stream(module, threads=2) as stream, fastrnn.stream(module) as one:
        for call in range(100):
            x = torch.randn(1, INPUT)
            with pytest.raises((RuntimeError, TypeError)):
                stream(x[:, 1:] if call % 2 else None)
            assert same(stream(x), one(x))


SCRIPT = """
import sys, torch, fastrnn
stream = fastrnn.stream(fastrnn.LSTM(40, 300), threads=2)
for _ in range(20):
    stream(torch.randn(1, 40))
{end}
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("raise KeyError", 1),
        pytest.param("", 0, marks=pytest.mark.exhaustive),
        pytest.param("sys.exit(3)", 3, marks=pytest.mark.exhaustive),
        pytest.param("import os; os._exit(4)", 4, marks=pytest.mark.exhaustive),
        pytest.param("del stream", 0, marks=pytest.mark.exhaustive),
    ],
)
def test_a_process_ends_with_an_open_stream(end: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(end=end)], timeout=60, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert ("KeyError" in done.stderr) == ("KeyError" in end)
    assert "Exception ignored" not in done.stderr


def test_one_thread_at_a_time() -> None:
    """Whoever comes second is told so and changes nothing: each state is that of the calls which were served."""
    module, barrier = fastrnn.LSTM(64, 512), threading.Barrier(2)
    xs = torch.randn(2, 60, 8, 1, 64)
    told: list[str] = []
    served: list[list[torch.Tensor]] = [[], []]
    with fastrnn.stream(module, steps=8, slots=2) as stream:

        def call(number: int) -> None:
            index, out = torch.tensor([number]), torch.empty(8, 1, 512)
            barrier.wait()
            for x in xs[number]:
                try:
                    stream(x, slots=index, out=out)
                except RuntimeError as error:
                    told.append(str(error))
                else:
                    served[number].append(x)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(call, range(2)))
        assert told, "no two calls met"
        assert all("another thread is using this stream" in text for text in told)
        for number, calls in enumerate(served):
            with fastrnn.stream(module, steps=8) as alone:
                for x in calls:
                    alone(x)
                own = tuple(state[:, number : number + 1] for state in stream.state)
                assert same(own, alone.state), number


def test_a_stream_that_is_in_use_refuses_everything() -> None:
    with fastrnn.stream(fastrnn.LSTM(3, 4), slots=2) as stream:
        before = stream.state
        stream._enter()
        uses: list[Any] = [
            lambda: stream(torch.randn(1, 3), slots=[0]),
            lambda: stream(torch.randn(1, 3), slots=torch.tensor([0])),
            lambda: stream.state,
            lambda: setattr(stream, "state", (torch.zeros(1, 2, 4),) * 2),
            lambda: stream.reset(),
            lambda: stream.update(),
            lambda: stream.close(),
        ]
        for use in uses:
            with pytest.raises(RuntimeError, match="another thread"):
                use()
        stream._leave()
        assert same(stream.state, before)
        stream(torch.randn(1, 3), slots=[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_many_streams_in_many_threads(threads: int) -> None:
    modules = [make(kind, INPUT, 64, 2) for kind in ("lstm", "gru", "lstm")]
    xs = torch.randn(40, 1, INPUT)
    expected = [in_chunks(fastrnn.stream(module), xs) for module in modules]

    def call(number: int) -> bool:
        with fastrnn.stream(modules[number % 3], threads=threads) as stream:
            good = True
            for _ in range(5):
                good = good and same(in_chunks(stream, xs), expected[number % 3])
                stream.reset()
        return good

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(24)))
    assert not helpers()


def test_close_while_another_thread_calls() -> None:
    """Either the call or the close is first; the other is told."""
    for _ in range(20):
        stream = fastrnn.stream(fastrnn.LSTM(64, 256), steps=16, threads=2)
        x, ends = torch.randn(16, 1, 64), []

        def call(stream: Any = stream, x: Any = x, ends: list[str] = ends) -> None:
            try:
                while True:
                    stream(x, out=torch.empty(16, 1, 256))
            except RuntimeError as error:
                ends.append(str(error))

        thread = threading.Thread(target=call)
        thread.start()
        while not ends:
            try:
                stream.close()
                break
            except RuntimeError:
                time.sleep(0)
        thread.join()
        assert len(ends) == 1
        stream.close()


fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


@fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_that_was_forked(threads: int) -> None:
    """It works on, alone, as does its parent; both end."""
    module, x = fastrnn.LSTM(INPUT, HIDDEN), torch.randn(60, 1, INPUT)
    expected = in_chunks(fastrnn.stream(module), x)
    stream = fastrnn.stream(module, threads=threads)
    good = same(in_chunks(stream, x[:20]), expected[:20])
    child = os.fork()
    if child == 0:
        try:
            good = good and same(in_chunks(stream, x[20:]), expected[20:])
            stream.close()
            with fastrnn.stream(module, threads=threads) as another:
                good = good and same(in_chunks(another, x), expected)
        except BaseException:
            good = False
        os._exit(0 if good else 1)
    assert same(in_chunks(stream, x[20:]), expected[20:])
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child does not end")
    assert status == 0
    stream.close()
    assert not helpers()
