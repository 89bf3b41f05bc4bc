"""Many clients of one `fastrnn.stream`: a server that hears whether somebody speaks, and what its clients measure.

    python examples/advanced/serve_streams.py                  trains a detector, then 200 clients for 5 seconds
    python examples/advanced/serve_streams.py --misbehave 20   beside clients that vanish, send rubbish or never read
    python examples/advanced/serve_streams.py --clients 400 --seconds 20 --weights int8 --plot serving.png

The server, in speech_server.py, is one process, its clients are others, and they meet at a socket in a temporary
directory. Each client makes calls of half a second to two seconds, one after the other, and sends a frame every 10 ms;
every eighth sends two frames every 20 ms. At the end all answers are compared with the model's own, step by step in a
loop over the frames of each call: where they differ, or some are missing, the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import math
import multiprocessing
import resource
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from speech_clients import Answered, Times, client, misbehave_on
from speech_server import BANDS, PERIOD, Detector, Server, recordings, train

EVERY = 0.25  # seconds from one report of a process to the next
PATIENCE = 60.0  # seconds until it must have come
ARRAYS = {"batches": (0, 3), "latencies": 0, "late": 0}  # in reports: when each was stepped, its frames, seconds
BROKEN = ("rubbish", "vanished", "stalled")  # how clients go that do not behave
SAME = {"float32": 1e-5, "float16": 1e-3, "int8": 2e-2}  # how far probabilities may lie from the model's own


class Mistake(Exception):
    """What the person at the keyboard can put right, or must know; shown without a traceback."""


async def report(pipe: Connection, told: Callable[[], dict[str, Any]]) -> None:
    """Tells when asked, and only then, so as not to wait at a full pipe; while there is a process that may ask."""

    def answer() -> None:
        pipe.recv()
        pipe.send(told())

    asyncio.get_running_loop().add_reader(pipe.fileno(), answer)
    while multiprocessing.parent_process().is_alive():
        await asyncio.sleep(1)


def serve(pipe: Connection, at: socket.socket, server: Server) -> None:
    """The server's process."""

    async def serving() -> None:
        async with await server.serve(at):
            await report(pipe, server.report)

    gc.freeze()  # the collector need not look through all that was imported while clients wait
    asyncio.run(serving())


def frames_of(number: int, heard: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """A client's frames, (n, BANDS), of the recordings (T, count, BANDS)."""
    places = (37 * number + np.arange(round(args.seconds / PERIOD))) % len(heard)
    return heard[places, number % heard.shape[1]]


def load(pipe: Connection, path: str, numbers: range, heard: np.ndarray, args: argparse.Namespace) -> None:
    """A process of clients, those of these numbers."""

    async def loading() -> None:
        times, until = Times(), asyncio.get_running_loop().time() + args.seconds
        given = [(n, frames_of(n, heard, args)) for n in numbers if n < args.clients]
        calls = asyncio.gather(*(client(path, number, frames, times) for number, frames in given))
        others = asyncio.gather(*(misbehave_on(path, n, heard[:, 0], until) for n in numbers if n < args.misbehave))
        both = asyncio.gather(calls, others)

        def told() -> dict[str, Any]:
            taken = {"latencies": np.array(times.latencies), "late": np.array(times.late)}
            times.latencies, times.late = [], []
            ended = zip(("calls", "problems"), both.result() if both.done() else (), strict=False)
            return taken | {name: list(chain(*lists)) for name, lists in ended}

        await report(pipe, told)

    gc.freeze()
    asyncio.run(loading())


class Reports:
    """What the processes have told, and when."""

    def __init__(self) -> None:
        self.begin, self.clients, self.gone = time.monotonic(), 0, Counter[str]()
        self.arrays = {name: [(math.inf, np.zeros(shape))] for name, shape in ARRAYS.items()}
        self.calls: list[Answered] = []
        self.problems: list[str] = []

    def take(self, report: dict[str, Any]) -> None:
        self.clients, self.gone = report.get("clients", self.clients), report.get("gone", self.gone)
        self.calls += report.get("calls", [])
        self.problems += report.get("problems", [])
        for name in ARRAYS.keys() & report.keys():
            self.arrays[name].append((time.monotonic(), report[name]))

    def of(self, name: str, seconds: float = math.inf) -> np.ndarray:
        """Those of the last seconds."""
        since = time.monotonic() - seconds
        return np.concatenate([values for when, values in self.arrays[name] if when >= since])

    def last_second(self) -> dict[str, str]:
        """For people."""
        sizes, latencies = self.of("batches", 1)[:, 1], self.of("latencies", 1)
        p50, p95, p99 = 1e3 * np.percentile(latencies, (50, 95, 99)) if len(latencies) else (math.nan,) * 3
        return {
            "clients": f"{self.clients:,}",
            "frames/s": f"{sizes.sum() / min(1, time.monotonic() - self.begin):,.0f}",
            "in a batch": f"{sizes.mean() if len(sizes) else 0:.1f}",
            "latency p50": f"{p50:.2f} ms",
            "p95": f"{p95:.2f} ms",
            "p99": f"{p99:.2f} ms",
            "refused": f"{self.gone['refused']:,}",
            "broken": f"{sum(self.gone[how] for how in BROKEN):,}",
        }


class View:
    """A table on a terminal; elsewhere a line each second."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, time.monotonic()
        live = console.is_terminal and not console.is_dumb_terminal
        self.live = Live(console=console, auto_refresh=False) if live else None

    def __enter__(self) -> View:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def update(self, reports: Reports) -> None:
        if self.live:
            shown = reports.last_second()
            table = Table(*shown)
            table.add_row(*shown.values())
            self.live.update(table, refresh=True)
        elif time.monotonic() >= self.last + 1:
            self.last += 1
            self.console.print("  ".join(f"{name} {value}" for name, value in reports.last_second().items()))


@contextmanager
def processes(*calls: tuple[Any, ...]) -> Iterator[list[Connection]]:
    """Pipes to forked ones, each of which runs a function with its pipe's other end; at the end they are gone.

    Forked, since they need not import anything then; no threads have been started so far.
    """
    context, started, pressed = multiprocessing.get_context("fork"), [], []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append("Ctrl-C"))  # which is not for the others
    try:
        for function, *arguments in calls:
            here, there = context.Pipe()
            process = context.Process(target=function, args=(there, *arguments), daemon=True)
            process.start()
            there.close()
            started.append((process, here))
        signal.signal(signal.SIGINT, before)
        if pressed:
            raise KeyboardInterrupt
        yield [pipe for _, pipe in started]
    finally:
        for process, _ in started:
            process.terminate()
            process.join()


def compare(model: Detector, heard: np.ndarray, reports: Reports, args: argparse.Namespace) -> float:
    """The largest difference between an answer and the model's own, which begins each call with zeros.

    Raises:
        Mistake: it is too large, an answer is missing, or a client that misbehaved was not answered as it should be.
    """
    largest, calls = 0.0, [call for call in reports.calls if not call.refused]
    for some in (calls[first : first + 256] for first in range(0, len(calls), 256)):
        longest = max(call.frames for call in some)
        frames, answers = np.zeros((longest, len(some), BANDS), np.float32), np.zeros((longest, len(some)))
        own = np.zeros_like(answers)
        for i, call in enumerate(some):
            frames[: call.frames, i] = frames_of(call.number, heard, args)[call.first : call.first + call.frames]
            if call.error or len(call.answers) != call.frames:
                told = f"{len(call.answers)} answers to the {call.frames} frames of a call"
                raise Mistake(f"client {call.number} got {told}. {call.error}")
            answers[: call.frames, i] = call.answers
        state = None
        with torch.inference_mode():
            for step, x in enumerate(torch.from_numpy(frames)):
                logits, state = model(x[None], state)
                own[step] = logits[0].sigmoid()
        for i, call in enumerate(some):
            largest = np.maximum(largest, abs(answers - own)[: call.frames, i].max())
    if reports.problems:
        raise Mistake("; ".join(reports.problems[:3]))
    if not largest <= SAME[args.weights]:
        raise Mistake(f"answers are {largest:.1e} from the model's own, where {SAME[args.weights]:.0e} is allowed")
    return largest


def summarize(reports: Reports, console: Console) -> None:
    batches, latencies, late = reports.of("batches"), reports.of("latencies"), reports.of("late")
    if not len(latencies) or len(batches) < 2:
        return
    seconds, sizes, stepped = np.ptp(batches[:, 0]), batches[:, 1], 1e6 * np.median(batches[:, 2])
    console.print(f"{len(latencies):,} frames answered; {sizes.sum() / seconds:,.0f} stepped in a second, ", end="")
    console.print(f"in batches of {sizes.mean():.1f} in the mean and {sizes.max():.0f} at most, of ", end="")
    console.print(f"which the stream took {stepped:.0f} µs for each, the median")
    percentiles = (f"p{percent} {1e3 * np.percentile(latencies, percent):.2f}" for percent in (50, 90, 95, 99, 99.9))
    console.print(f"ms from sending a frame to its answer: {', '.join(percentiles)}, max {1e3 * latencies.max():.2f}")
    console.print(f"ms that frames were sent late: p50 {1e3 * np.median(late):.2f}, max {1e3 * late.max():.2f}")
    ways = ", ".join(f"{reports.gone[how]:,} {how}" for how in BROKEN)
    console.print(f"calls: {reports.gone['left']:,} ended well, {reports.gone['refused']:,} refused; broken: {ways}")


def plot(reports: Reports, path: Path) -> None:
    from matplotlib.figure import Figure

    batches, latencies = reports.of("batches"), 1e3 * reports.of("latencies")
    picture = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = picture.subplots(1, 2)
    p99 = np.percentile(latencies, 99)
    left.hist(np.minimum(latencies, 1.5 * p99), bins=100, color="tab:blue", alpha=0.6)
    for percent, style in ((50, "-"), (95, "--"), (99, ":")):
        value = np.percentile(latencies, percent)
        left.axvline(value, color="black", linestyle=style, label=f"p{percent}: {value:.2f} ms")
    left.set(xlabel="ms from sending a frame to its answer (the last bar: all above)", ylabel="frames")
    left.set_title(f"Latency of {len(latencies):,} frames")
    left.legend()
    times = batches[:, 0] - batches[0, 0]
    right.plot(times, batches[:, 1], ".", markersize=2, alpha=0.3, color="tab:orange", label="a batch")
    tenths = (10 * times).astype(int)
    counts = np.maximum(1, np.bincount(tenths))
    means = np.bincount(tenths, batches[:, 1]) / counts
    right.plot((np.arange(len(means)) + 0.5) / 10, means, color="black", label="mean of 0.1 s")
    right.set(xlabel="seconds", ylabel="frames in a batch", ylim=(0, None))
    right.set_title(f"{len(times):,} batches")
    right.legend(loc="lower right", markerscale=5)
    picture.savefig(path, dpi=120)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--clients", type=int, default=200, help="that behave (200)")
    add("--seconds", type=float, default=5.0, help="of frames that each of them has (5)")
    add("--misbehave", type=int, default=0, metavar="N", help="clients more that do not (0)")
    add("--processes", type=int, default=1, help="that the clients share (1)")
    add("--batch", type=int, default=64, help="frames stepped together, at most (64)")
    add("--slots", type=int, default=1000, help="clients at a time, at most (1000)")
    add("--wait", type=float, default=1.0, help="ms for which the first frame of a batch waits (1)")
    add("--weights", choices=tuple(SAME), default="float32", help="how the stream keeps them (float32)")
    add("--hidden", type=int, default=64, help="units in each of two layers (64)")
    add("--training-steps", type=int, default=60, help="(60)")
    add("--seed", type=int, default=0, help="of recordings and weights (0)")
    add("--plot", type=Path, metavar="FILE", help="write a picture, with matplotlib")
    args = parser.parse_args(arguments)
    limits = ("clients", 1), ("misbehave", 0), ("processes", 1), ("batch", 1), ("slots", 1), ("wait", 0), ("hidden", 1)
    for name, low in (*limits, ("seconds", PERIOD), ("training_steps", 0), ("seed", 0)):
        if not low <= getattr(args, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(args, name)}")
    return args


def ask(pipe: Connection) -> dict[str, Any]:
    with suppress(EOFError, ConnectionError):
        pipe.send("report")
        if pipe.poll(PATIENCE):
            return pipe.recv()
    raise Mistake("a process has ended before its time, or is stuck")


def watch(started: list[Connection], reports: Reports, view: View) -> None:
    """Until all clients have ended; the server comes first."""
    server, *loads = started
    while loads:
        time.sleep(EVERY)
        for pipe in tuple(loads):
            report = ask(pipe)
            reports.take(report)
            if "calls" in report:
                loads.remove(pipe)
        reports.take(ask(server))
        view.update(reports)
    time.sleep(EVERY)  # until the server knows, too
    reports.take(ask(server))


def run(args: argparse.Namespace, console: Console) -> None:
    if args.plot and not importlib.util.find_spec("matplotlib"):
        raise Mistake('--plot needs matplotlib: pip install ".[plot]"')
    torch.set_num_threads(1)  # the model is small, and processes are several
    begin = time.perf_counter()
    model, right, chance = train(args.hidden, args.training_steps, args.seed)
    console.print(
        f"a GRU of 2 x {args.hidden} units, trained in {time.perf_counter() - begin:.1f} s, is right about {right:.1%} "
        f"of frames that are new to it; {chance:.1%} would be no feat"
    )
    length = min(2000, round(args.seconds / PERIOD))  # clients begin at other places of it
    heard, reports = recordings(16, length, 2 * args.seed + 2)[0].numpy(), Reports()
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as at:
        path = str(Path(folder) / "speech.sock")
        at.bind(path)
        at.listen(socket.SOMAXCONN)
        server = Server(model, args.batch, args.slots, args.wait / 1000, args.weights)
        shares = (range(k, max(args.clients, args.misbehave), args.processes) for k in range(args.processes))
        calls = [(serve, at, server), *((load, path, numbers, heard, args) for numbers in shares)]
        try:
            with processes(*calls) as started, View(console) as view:
                watch(started, reports, view)
        finally:
            summarize(reports, console)
    if args.plot:
        plot(reports, args.plot)
    largest = compare(model, heard, reports, args)
    count = sum(not call.refused for call in reports.calls)
    console.print(
        f"all answers are the model's own, in a loop over the frames of each of {count:,} calls, "
        f"to {largest:.1e} ({SAME[args.weights]:.0e} is allowed)"
    )


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a file
    try:
        run(args, Console(markup=False, emoji=False, highlight=False, soft_wrap=True))
    except Mistake as mistake:
        raise SystemExit(f"serve_streams: {mistake}") from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    main()
