"""The server of serve_streams.py: for many clients at once it hears whether somebody speaks, by one `fastrnn.stream`.

A client sends a frame of 40 log energies every 10 ms and gets the probability of speech. All clients' states are slots
of one stream:

    stream = fastrnn.stream(gru, batch=64, slots=1000)
    y = stream(frames, slots=slots)

Frames are stepped together: those of `batch` clients, or what has come within `wait` of the first one. A client has one
frame in a batch at most; its next one waits for the next batch. A slot is set to zero when a client comes, and is
another one's when it goes, so clients that break off or are sent away change nobody else's state. Nobody is waited for:
of a client that sends faster than is stepped no more is read for a while, one that does not read its answers is sent
away, and one that is silent costs its slot and nothing else.

A message, in both directions, is a header of 8 bytes, b"FR", its kind as uint16 and its length as uint32, in little
endian, and as many bytes:

    1 READY    to the client: it has a slot; nothing follows
    2 FRAME    to the server: 40 float32
    3 ANSWER   to the client: float32, the probability of speech, for each frame in their order
    4 ERROR    to the client: why it is sent away, in UTF-8; the last message
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from itertools import compress, islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrnn

BANDS, PERIOD = 40, 0.01  # of a frame, and seconds from one to the next
RATE, WINDOW, POINTS = 8000, 200, 512  # of the audio: samples in a second, and of a frame and its transform
HEADER = struct.Struct("<2sHI")
MAGIC, READY, FRAME, ANSWER, ERROR = b"FR", 1, 2, 3, 4
FRAME_BYTES = 4 * BANDS
MOST_WAITING = 32  # frames of a client, beside those that came with the last of them
MOST_UNREAD = 4096  # bytes of answers: those of three seconds
LAST_WORDS = 1.0  # seconds for a client that is sent away to read why


# The model, and what it hears


def recordings(count: int, frames: int, seed: int) -> tuple[Tensor, Tensor]:
    """Log energies (frames, count, BANDS), and whether somebody speaks, (frames, count): pulses of a wandering pitch
    with syllables, in noise that swells and fades; there are steady tones, too, which are no speech."""
    generator, hop = torch.Generator().manual_seed(seed), int(RATE * PERIOD)

    def wander(scale: int) -> Tensor:
        steps = torch.randn(count, 1, frames + scale, generator=generator)
        return math.sqrt(scale) * F.avg_pool1d(steps, scale, 1)[:, 0, :frames]

    def samples(values: Tensor) -> Tensor:
        return F.interpolate(values[:, None], frames * hop + POINTS, mode="linear")[:, 0]

    speaks, beeps = wander(60) > 0, wander(60) > 0.8
    pitch, syllables = samples(150 * 2 ** (0.5 * wander(100))), samples(0.3 + wander(12).abs())
    pulses = torch.exp(6 * (torch.cos(torch.cumsum(2 * math.pi * pitch / RATE, -1)) - 1)) - 0.16
    tones = torch.sin(torch.arange(pulses.shape[1]) * (0.2 + 1.5 * torch.rand(count, 1, generator=generator)))
    noise = torch.randn(pulses.shape, generator=generator) * samples(0.2 * torch.exp(0.7 * wander(150)))
    audio = noise + pulses * syllables * samples(speaks.float()) + 0.3 * tones * samples(beeps.float())
    spectra = torch.stft(audio, POINTS, hop, WINDOW, torch.hann_window(WINDOW), center=False, return_complex=True)
    mel = 2595 * torch.log10(1 + torch.linspace(0, RATE / 2, POINTS // 2 + 1) / 700)
    width = mel[-1] / (BANDS + 1)
    bands = (1 - (mel / width - torch.arange(1, BANDS + 1)[:, None]).abs()).clamp(min=0)
    power = torch.einsum("nft,bf->tnb", spectra.abs() ** 2, bands)[:frames]
    return ((torch.log(power + 1e-3) - 3) / 2).contiguous(), speaks.T.contiguous()


class Detector(nn.Module):
    """Frames (T, B, BANDS) to logits of speech (T, B), and the state with which to go on."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn, self.head = fastrnn.GRU(BANDS, hidden, 2), nn.Linear(hidden, 1)

    def forward(self, frames: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = self.rnn(frames, state)
        return self.head(y).squeeze(-1), state


def train(hidden: int, steps: int, seed: int) -> tuple[Detector, float, float]:
    """A detector, the share of frames of other recordings that it is right about, and that of the commoner answer."""
    torch.manual_seed(seed)
    model = Detector(hidden)
    (frames, speech), (others, truth) = (recordings(32, 500, 2 * seed + part) for part in (0, 1))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        first = int(torch.randint(400, ()))
        part = slice(first, first + 100)
        loss = F.binary_cross_entropy_with_logits(model(frames[part])[0], speech[part].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        right = ((model(others)[0] > 0) == truth).float().mean().item()
    share = truth.float().mean().item()
    return model.eval().requires_grad_(False), right, max(share, 1 - share)


# The protocol, and the server


def message(kind: int, content: bytes = b"") -> bytes:
    return HEADER.pack(MAGIC, kind, len(content)) + content


def messages(received: bytearray, longest: int) -> Iterator[tuple[int, bytes]]:
    """Takes the whole messages from what was received; a ValueError says what is none."""
    while len(received) >= HEADER.size:
        magic, kind, length = HEADER.unpack_from(received)
        if magic != MAGIC:
            raise ValueError(f"a message begins with {MAGIC!r}, not with {magic!r}")
        if length > longest:
            raise ValueError(f"a message has at most {longest} bytes, not {length}")
        end = HEADER.size + length
        if len(received) < end:
            return
        content = bytes(received[HEADER.size : end])
        del received[:end]
        yield kind, content


class Client(asyncio.Protocol):
    """A connection, as the server sees it. It has a slot until it goes or is sent away."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server, self.slot = server, -1
        self.received, self.frames = bytearray(), deque[bytes]()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        # What the system holds for a client that does not read would otherwise be some hundred kilobytes.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_UNREAD)
        transport.set_write_buffer_limits(high=MOST_UNREAD)
        if not self.server.free:
            self.server.gone["refused"] += 1
            self.send_away("refused", f"all {self.server.stream.slots} slots are taken")
            return
        self.slot = self.server.free.pop()
        self.server.stream.reset(self.slot)
        self.transport.write(message(READY))

    def data_received(self, data: bytes) -> None:
        if self.slot < 0:
            return
        self.received += data
        try:
            for kind, content in messages(self.received, FRAME_BYTES):
                if kind != FRAME or len(content) != FRAME_BYTES:
                    raise ValueError(f"a frame is of kind {FRAME} and has {FRAME_BYTES} bytes")
                self.frames.append(content)
        except ValueError as error:
            self.send_away("rubbish", str(error))
            return
        if len(self.frames) > MOST_WAITING:
            self.transport.pause_reading()
        if self.frames:
            self.server.offer(self)

    def next_frame(self) -> bytes:
        if not self.transport.is_reading() and len(self.frames) <= MOST_WAITING:
            self.transport.resume_reading()
        return self.frames.popleft()

    def pause_writing(self) -> None:
        """asyncio calls it when more than MOST_UNREAD bytes wait to be read."""
        self.leave("stalled")
        self.transport.abort()

    def send_away(self, kind: str, why: str) -> None:
        self.leave(kind)
        self.transport.write(message(ERROR, why.encode()))
        self.transport.write_eof()  # what it still sends is read and dropped, for else it might not get to read why
        asyncio.get_running_loop().call_later(LAST_WORDS, self.transport.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self.leave("vanished" if self.received or self.frames or error else "left")

    def leave(self, how: str) -> None:
        """Once: what follows is about a connection without a slot."""
        if self.slot >= 0:
            self.server.gone[how] += 1
            self.server.ready.pop(self, None)
            self.server.free.append(self.slot)
            self.slot = -1


class Server:
    """Clients' frames in, answers out, by one stream.

    `wait` is how many seconds the first frame of a batch waits for others; asyncio's timers come up to 1 ms late.
    """

    def __init__(self, model: Detector, batch: int, slots: int, wait: float, weights: str = "float32") -> None:
        self.stream, self.head = fastrnn.stream(model.rnn, batch=batch, slots=slots, weights=weights), model.head
        self.wait, self.free = wait, list(range(slots))
        self.ready: OrderedDict[Client, None] = OrderedDict()  # who has a frame, in the order of their turns
        self.timer: asyncio.Handle | None = None
        self.full = False  # and so stepped at once
        self.gone: Counter[str] = Counter()
        self.batches: list[tuple[float, int, float]] = []  # when, how many frames, how many seconds the stream took

    async def serve(self, at: socket.socket) -> asyncio.Server:
        """Takes clients from now on who come to the socket."""
        make = asyncio.get_running_loop().create_unix_server
        return await make(lambda: Client(self), sock=at, backlog=socket.SOMAXCONN)  # many may come at once

    def offer(self, client: Client) -> None:
        """The client has a frame."""
        self.ready.setdefault(client)
        self.schedule()

    def schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if len(self.ready) >= self.stream.batch and not self.full:
            if self.timer is not None:
                self.timer.cancel()
            self.full, self.timer = True, loop.call_soon(self.step)
        elif self.ready and self.timer is None:
            self.timer = loop.call_later(self.wait, self.step)

    @torch.inference_mode()
    def step(self) -> None:
        """A batch: the first frames of the clients whose turn it is."""
        self.full, self.timer = False, None
        clients = list(islice(self.ready, self.stream.batch))
        for client in clients:
            del self.ready[client]
        if not clients:
            return
        x = np.frombuffer(b"".join([client.next_frame() for client in clients]), np.float32).reshape(-1, BANDS)
        numbers = np.isfinite(x).all(1)
        if not numbers.all():
            for client in compress(clients, ~numbers):
                client.send_away("rubbish", "a frame has NaN or inf")
            clients, x = list(compress(clients, numbers)), x[numbers]
        begin = time.monotonic()
        y = self.stream(x, slots=np.array([client.slot for client in clients]))
        self.batches.append((begin, len(clients), time.monotonic() - begin))
        for client, answer in zip(clients, self.head(y).sigmoid().numpy(), strict=True):
            client.transport.write(message(ANSWER, answer.tobytes()))
            if client.frames and client.slot >= 0:
                self.ready[client] = None
        self.schedule()

    def report(self) -> dict[str, Any]:
        """How many clients there are, how others went, and the batches since the last report, (n, 3)."""
        batches, self.batches = np.array(self.batches).reshape(-1, 3), []
        return {"clients": self.stream.slots - len(self.free), "gone": Counter(self.gone), "batches": batches}
