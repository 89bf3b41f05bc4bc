"""examples/advanced/serve_streams.py: its server, clients that misbehave, what it compares and prints, and Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrnn
from tests.examples.programs import FOLDER, load_script
from tests.tolerances import assert_accurate

SCRIPT = FOLDER / "serve_streams.py"
SMALL = ["--clients", "9", "--seconds", "0.6", "--hidden", "8", "--training-steps", "2"]

program = load_script(SCRIPT)
server, clients = sys.modules["speech_server"], sys.modules["speech_clients"]


@pytest.fixture
def model() -> Any:
    detector = server.Detector(8).eval().requires_grad_(False)
    detector.head.weight *= 5  # so that probabilities depend on the states
    return detector


def own(model: Any, frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Probabilities (n,) by torch.nn, of one client's frames (n, BANDS)."""
    gru = nn.GRU(server.BANDS, 8, 2, dtype=dtype)
    gru.load_state_dict(model.rnn.state_dict())
    y = gru(frames.to(dtype))[0].detach()
    return (y @ model.head.weight.to(dtype)[0] + model.head.bias.to(dtype)).sigmoid()


def assert_own(model: Any, answers: list[float], frames: Tensor) -> None:
    theirs, truth = own(model, frames, torch.float32), own(model, frames, torch.float64)
    assert_accurate("answers", torch.tensor(answers), truth, theirs)


@asynccontextmanager
async def serving(model: Any, batch: int = 4, slots: int = 16, wait: float = 0.001) -> AsyncIterator[tuple[Any, str]]:
    """A server and the path of its socket."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as at:
        path = f"{folder}/socket"
        at.bind(path)
        serving = server.Server(model, batch, slots, wait)
        async with await serving.serve(at):
            yield serving, path
            while len(serving.free) < slots:  # until it has seen that clients are gone
                await asyncio.sleep(0.01)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    magic, kind, length = server.HEADER.unpack(await reader.readexactly(server.HEADER.size))
    assert magic == server.MAGIC
    return kind, await reader.readexactly(length)


def sent(frames: Tensor) -> bytes:
    return b"".join(server.message(server.FRAME, frame.numpy().tobytes()) for frame in frames)


async def ask(path: str, frames: Tensor, at_once: int) -> list[float]:
    """A client that sends so many frames at once, and more when these are answered."""
    reader, writer = await asyncio.open_unix_connection(path)
    assert await answer(reader) == (server.READY, b"")
    answers: list[float] = []
    for some in frames.split(at_once):
        writer.write(sent(some))
        for _ in some:
            kind, content = await answer(reader)
            assert kind == server.ANSWER
            answers += np.frombuffer(content, "<f4").tolist()
    writer.close()
    await writer.wait_closed()
    return answers


def test_nobody_is_changed_by_clients_that_misbehave(model: Any) -> None:
    frames, ways = torch.randn(6, 40, server.BANDS), len(clients.RUBBISH) + 3
    rubbish = sent(10 * torch.randn(5, server.BANDS))

    async def test() -> None:
        async with serving(model) as (serves, path):
            bad = asyncio.gather(*(clients.misbehave(path, way, rubbish) for way in range(ways)))
            answers = await asyncio.gather(*(ask(path, some, 1 + 12 * (i % 2)) for i, some in enumerate(frames)))
            assert await bad == [""] * ways
        for got, some in zip(answers, frames, strict=True):
            assert_own(model, got, some)
        assert serves.gone == {"rubbish": len(clients.RUBBISH), "vanished": 1, "stalled": 1, "left": 7}
        sizes = serves.report()["batches"][:, 1]
        assert sizes.max() <= 4
        assert sizes.mean() > 1.5
        assert not serves.ready

    run(test)


@pytest.mark.parametrize(
    ("rubbish", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "a message begins with b'FR', not with b'GE'"),
        (server.HEADER.pack(b"FR", 2, 161), "a message has at most 160 bytes, not 161"),
        (server.message(2, bytes(156)), "a frame is of kind 2 and has 160 bytes"),
        (server.message(3, bytes(160)), "a frame is of kind 2 and has 160 bytes"),
        (sent(torch.full((1, 40), torch.nan)), "a frame has NaN or inf"),
        (sent(torch.full((1, 40), -torch.inf)), "a frame has NaN or inf"),
    ],
)
def test_rubbish_is_told_why_and_sent_away(rubbish: bytes, why: str, model: Any) -> None:
    async def test() -> None:
        async with serving(model) as (_, path):
            reader, writer = await asyncio.open_unix_connection(path)
            for part in (rubbish[:3], rubbish[3:]):
                writer.write(part)
                await asyncio.sleep(0.01)
            assert await answer(reader) == (server.READY, b"")
            assert await answer(reader) == (server.ERROR, why.encode())
            assert await reader.read() == b""
            writer.close()

    run(test)


@pytest.mark.parametrize("leaves_in_a_frame", [False, True])
def test_a_slot_is_refused_while_taken_and_begins_with_zeros(leaves_in_a_frame: bool, model: Any) -> None:
    frames = torch.randn(2, 10, server.BANDS)

    async def test() -> None:
        async with serving(model, slots=1) as (serves, path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(sent(frames[0])[: -3 if leaves_in_a_frame else None])
            for _ in range(11 - leaves_in_a_frame):
                await answer(reader)  # the slot's state is no longer zero
            other, others = await asyncio.open_unix_connection(path)
            others.write(sent(frames[0]))  # does not keep it from reading why
            assert await answer(other) == (server.ERROR, b"all 1 slots are taken")
            assert await other.read() == b""
            others.close()
            writer.transport.abort()
            while not serves.free:
                await asyncio.sleep(0.01)
            assert_own(model, await ask(path, frames[1], 10), frames[1])
        assert serves.gone["refused"] == 1
        assert serves.gone["vanished"] == leaves_in_a_frame

    run(test)


def test_who_sends_much_waits_alone_and_is_not_read_further(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    many, few = torch.randn(3000, server.BANDS), torch.randn(20, server.BANDS)
    waiting, received = [], server.Client.data_received

    def noted(client: Any, data: bytes) -> None:
        received(client, data)
        waiting.append(len(client.frames))

    monkeypatch.setattr(server.Client, "data_received", noted)

    async def test() -> None:
        async with serving(model, wait=0.0) as (serves, path):
            flood = asyncio.create_task(ask(path, many, len(many)))
            while not serves.ready:
                await asyncio.sleep(0)
            assert_own(model, await ask(path, few, 1), few)
            assert not flood.done()
            assert_own(model, await flood, many)
            most = server.MOST_WAITING + (256 << 10) // len(sent(few[:1]))  # asyncio reads 256 KiB at a time
            assert server.MOST_WAITING < max(waiting) <= most < len(many)

    run(test)


@pytest.fixture
def reports(model: Any) -> tuple[Any, ...]:
    """What `compare` takes: of two clients, one of which called twice."""
    args = program.parse([*SMALL, "--clients", "2"])
    heard, reports = torch.randn(200, 3, server.BANDS).numpy(), program.Reports()
    for number, first, count in ((0, 0, 20), (0, 20, 40), (1, 0, 60)):
        frames = torch.from_numpy(program.frames_of(number, heard, args)[first : first + count])
        answers = own(model, frames, torch.float32).numpy()
        reports.calls.append(clients.Answered(number, first, count, "", answers))
    return model, heard, reports, args


def test_right_answers_are_accepted(reports: tuple[Any, ...]) -> None:
    reports[2].calls.append(clients.Answered(2, 0, 60, "all 2 slots are taken", np.empty(0)))
    assert 0 <= program.compare(*reports) < 1e-6


@pytest.mark.parametrize("wrong", [1e-4, float("nan")])
def test_wrong_answers_are_found(wrong: float, reports: tuple[Any, ...]) -> None:
    reports[2].calls[1].answers[17] += wrong
    with pytest.raises(program.Mistake, match=r"answers are .* from the model's own, where 1e-05 is allowed"):
        program.compare(*reports)


def test_missing_answers_and_wrong_manners_are_found(reports: tuple[Any, ...]) -> None:
    reports[2].problems.append("to b'GET' the server said nothing")
    with pytest.raises(program.Mistake, match="to b'GET' the server said nothing"):
        program.compare(*reports)
    call = reports[2].calls[0]
    reports[2].calls[0] = call._replace(answers=call.answers[:-1], error="a frame has NaN or inf")
    with pytest.raises(program.Mistake, match=r"client 0 got 19 answers to the 20 frames of a call\. a frame has NaN"):
        program.compare(*reports)


def test_it_learns() -> None:
    _, right, chance = server.train(16, 30, 0)
    assert chance < 0.6
    assert right > 0.8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--clients", "0"], "--clients must be at least 1, got 0"),
        (["--seconds", "nan"], "--seconds must be at least 0.01, got nan"),
        (["--training-steps", "-1"], "--training-steps must be at least 0, got -1"),
        (["--weights", "int4"], "invalid choice: 'int4'"),
    ],
)
def test_mistakes_in_the_command_line(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        program.main([*SMALL, *more])
    assert leaving.value.code == 2
    assert message in capsys.readouterr().err


# the package that these tests import, whether it is installed or found in the checkout
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(fastrnn.__file__).parents[1])}


def test_the_script_serves_compares_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "serving.png"
    command = [sys.executable, str(SCRIPT), *SMALL, "--misbehave", "8", "--slots", "30", "--plot", str(picture)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    frames, calls = re.search(r"^(\d+) frames answered; [\d,]+ stepped in a second", result.stdout, re.M), "of each of "
    assert frames
    assert int(frames[1]) == 9 * 60
    assert re.search(r"p50 [\d.]+, p90 [\d.]+, p95 [\d.]+, p99 [\d.]+", result.stdout)
    assert re.search(r" [1-9]\d* rubbish, [1-9]\d* vanished, [1-9]\d* stalled$", result.stdout, re.M)
    assert re.search(calls + r"\d+ calls, to \d\.\de-\d\d \(1e-05 is allowed\)\n$", result.stdout)
    assert len(result.stdout.splitlines()) < 40


@pytest.mark.exhaustive
def test_ctrl_c_ends_all_processes_without_a_traceback() -> None:
    command = [sys.executable, str(SCRIPT), *SMALL, "--seconds", "60"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
    ) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        while not started.stdout.readline().startswith("clients "):
            pass
        os.killpg(started.pid, signal.SIGINT)  # as a terminal does, to all of them
        printed, errors = started.stdout.read(), started.stderr.read()  # at their end nobody has the pipes any more
    assert started.returncode == 130
    assert "frames answered" in printed
    assert "Traceback" not in errors
