"""The clients of serve_streams.py: those that behave, and note their answers and when they come, and others."""

from __future__ import annotations

import asyncio
import math
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from speech_server import ANSWER, BANDS, ERROR, FRAME, FRAME_BYTES, HEADER, MAGIC, PERIOD, READY, message, messages

PATIENCE = 30.0  # seconds that a client waits for answers


@dataclass
class Times:
    """Of the frames of a process, since its last report, in seconds."""

    latencies: list[float] = field(default_factory=list)
    """from when a frame was sent to its answer"""
    late: list[float] = field(default_factory=list)
    """from when it was due to when it was sent"""


class Call(asyncio.Protocol):
    """A client that behaves: it sends each of its frames, (n, BANDS), when it is due, and notes the answers.

    Every so many periods, `burst`, it sends as many frames at once, as they come through networks.
    """

    transport: asyncio.Transport

    def __init__(self, frames: np.ndarray, burst: int, times: Times) -> None:
        self.loop = asyncio.get_running_loop()
        self.frames, self.burst, self.times, self.begin = frames, burst, times, math.nan
        self.received, self.over = bytearray(), self.loop.create_future()
        self.sent: list[float] = []
        self.answers: list[float] = []
        self.error = ""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def due(self) -> float:
        """When the next frame is."""
        return self.begin + (len(self.sent) // self.burst + 1) * self.burst * PERIOD

    def send(self) -> None:
        if self.over.done():
            return
        now = self.loop.time()
        self.times.late.append(now - self.due())
        self.transport.write(message(FRAME, self.frames[len(self.sent)].tobytes()))
        self.sent.append(now)
        if len(self.sent) < len(self.frames):
            self.loop.call_at(self.due(), self.send)

    def data_received(self, data: bytes) -> None:
        self.received += data
        for kind, content in messages(self.received, 1000):
            if kind == READY:
                self.begin = self.loop.time()
                self.loop.call_at(self.due(), self.send)
            elif kind == ERROR:
                self.error = content.decode()
            else:
                self.times.latencies.append(self.loop.time() - self.sent[len(self.answers)])
                self.answers.append(struct.unpack("<f", content)[0])
        if len(self.answers) == len(self.frames):
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.over.set_result(None)


class Answered(NamedTuple):
    """A call, as it is reported: of which client, from which of its frames on, how many, and what it was told."""

    number: int
    first: int
    frames: int
    error: str
    answers: np.ndarray

    @property
    def refused(self) -> bool:
        return "slots are taken" in self.error


async def client(path: str, number: int, frames: np.ndarray, times: Times) -> list[Answered]:
    """One that behaves, and calls again and again."""
    loop, random = asyncio.get_running_loop(), np.random.default_rng(number)
    calls: list[Answered] = []
    await asyncio.sleep(random.uniform(0, 10 * PERIOD))
    first = 0
    while first < len(frames):
        last = first + int(random.integers(40, 200))
        call = Call(frames[first:last], 1 + (number % 8 == 0), times)
        transport, _ = await loop.create_unix_connection(lambda call=call: call, path)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(call.over), len(call.frames) * PERIOD + PATIENCE)
        transport.abort()
        calls.append(Answered(number, first, len(call.frames), call.error, np.array(call.answers)))
        if call.error:
            break
        first = last
    return calls


RUBBISH = (  # and a word of the answer
    (b"GET / HTTP/1.1\r\n\r\n", "begins with"),
    (HEADER.pack(MAGIC, FRAME, 1 << 30), "at most"),
    (message(FRAME, b"short"), "has"),
    (message(ANSWER, bytes(FRAME_BYTES)), "kind"),
    (message(FRAME, np.full(BANDS, np.nan, "<f4").tobytes()), "NaN"),
)


async def misbehave(path: str, way: int, proper: bytes) -> str:
    """A client that sends proper frames and then does not behave. What the server did that it should not have done."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        if way < len(RUBBISH):
            rubbish, word = RUBBISH[way]
            writer.write(proper + rubbish)
            answer = await reader.read()
            if word.encode() not in answer and b"slots are taken" not in answer:
                return f"to {rubbish[:20]!r} the server said {answer[-50:]!r}"
        elif way == len(RUBBISH):  # vanishes in the middle of a frame
            writer.write(proper[:-20])
        elif way == len(RUBBISH) + 1:  # is silent
            await asyncio.sleep(30 * PERIOD)
        else:  # reads nothing
            writer.transport.pause_reading()
            while True:
                writer.write(proper)
                await writer.drain()
    except ConnectionError:
        if way < len(RUBBISH):
            return f"to {rubbish[:20]!r} the server said nothing"
    finally:
        writer.transport.abort()
    return ""


async def misbehave_on(path: str, number: int, frames: np.ndarray, until: float) -> list[str]:
    proper, problems = b"".join(message(FRAME, frame.tobytes()) for frame in frames[:5]), []
    while asyncio.get_running_loop().time() < until:
        way = number % (len(RUBBISH) + 3)
        try:
            problems.append(await asyncio.wait_for(misbehave(path, way, proper), PATIENCE))
        except asyncio.TimeoutError:
            problems.append(f"the server did not send away a client that misbehaved, {way}")
        number += 1
        await asyncio.sleep(3 * PERIOD)
    return [problem for problem in problems if problem]
