"""Stage `race`: torch.nn and each kind of fastrnn's kernels side by side, forward and with every gradient.

torch.nn calls cuDNN, with its weights in one piece, as it is fastest; in bfloat16 it does not, and launches kernels for
each step. Each contender is timed as a CUDA graph,
which leaves out the host, with L2 cleared before every replay, and eagerly, launch gaps included; they take turns.
Nothing is timed before its results are as near to torch.nn's in a wider dtype as torch.nn's own are (`parity`).
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks import cuda, parity, precision, timing
from benchmarks.cases import Case, Problem, build_module
from benchmarks.contenders import FastRNN, NotServed, Run, TorchNN
from benchmarks.gpu.figures import AUTO, BASELINE, EAGER, GRAPH
from benchmarks.gpu.points import trainings
from fastrnn.backends.triton import configurations
from tests.tolerances import relative_error

ROUNDS = 5
TURN_SECONDS = 0.003
"""Of a contender in a round, or one call where that takes longer."""
MOST_CALLS = 64
"""In a turn."""
MOST_SECONDS = 2.5
"""Of all rounds of a point: where calls take long there are fewer, but MIN_ROUNDS at least."""
MIN_ROUNDS = 3
WIDER = {"float32": torch.float64, "tf32": torch.float64}
"""By a case's dtype, that of the truth; float32 for the 16-bit ones."""
WAY = "FASTRNN_CUDA_WAY"


@dataclass(frozen=True)
class Racer:
    """A contender: a backend of fastrnn, in one of its ways, or torch.nn."""

    name: str
    contender: Any
    way: str = ""

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Within the block the backend `cuda` takes this way."""
        before = os.environ.get(WAY)
        os.environ[WAY] = self.way
        try:
            yield
        finally:
            os.environ[WAY] = before or ""


@dataclass(frozen=True)
class Persistent(FastRNN):
    """fastrnn's Triton where one launch computes all steps: a launch for each step takes long to measure."""

    backend: str = "triton"

    def build(self, problem: Problem) -> Run:
        kind, units = configurations.precision(problem.x.dtype), configurations.padded(problem.case.shape.H)
        if configurations.row_of(problem.case.cell, kind, units) is None:
            raise NotServed("it would be launched for each step")
        return super().build(problem)


RACERS = (
    Racer(BASELINE, TorchNN()),
    Racer("triton", Persistent()),
    Racer("cuda cluster", FastRNN("cuda"), "cluster"),
    Racer("cuda grid", FastRNN("cuda"), "grid"),
    Racer(AUTO, FastRNN("auto")),
)


def cases(
    device: str = "cuda", dry: bool = False, only: str = ""
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`. `only` is a part of the label of the cases that are run; in a dry run Triton's interpreter races."""
    listed = [replace(case, shape=case.shape._replace(T=3, B=2, I=8, H=8), device="cpu") for case in trainings()[:2]]
    for case in listed if dry else trainings():
        for mode in ("training", "inference"):
            one = replace(case, mode=mode)
            if only in one.label:
                yield one.label, partial(run, one, RACERS)


def run(case: Case, racers: Sequence[Racer]) -> dict[str, Any]:
    """The case and, for each contender, its times in µs (median and quartiles) or why there are none."""
    told: dict[str, dict[str, Any]] = {racer.name: {} for racer in racers}
    with case.grad_mode(), precision.products(case.dtype):
        problem = make_problem(case)
        runs = checked(problem, standard(problem), racers, told)
        eager(racers, runs, told, case.device)
        if case.device == "cuda":
            graphs(racers, runs, told)
            memory(racers, runs, told)
    del problem, runs
    gc.collect()
    if case.device == "cuda":
        torch.cuda.empty_cache()
    return {"point": asdict(case), "times": told}


def make_problem(case: Case) -> Problem:
    """As `cases.make_problem`, but made on the case's device: large ones take seconds on a CPU."""
    T, B, I, H = case.shape
    dtype, device = case.tensor_dtype, case.device
    torch.manual_seed(0)
    weights = build_module(nn, case, dtype).state_dict()
    x = torch.randn(T, B, I, dtype=dtype, device=device)
    dy = torch.randn(T, B, H * (1 + case.bidirectional), dtype=dtype, device=device)
    resets = torch.rand(T, B, device=device) < case.resets if case.resets else None
    return Problem(case, weights, x, dy, resets)


def standard(problem: Problem) -> parity.Standard:
    """torch.nn in a wider dtype, or with resets fastrnn's reference, which is a loop; and the errors of torch.nn."""
    wider = WIDER.get(problem.case.dtype, torch.float32)
    uncut = problem._replace(resets=None)
    ours = TorchNN().build(uncut)()
    truth = TorchNN(wider).build(uncut)()
    errors = [relative_error(one, other) for one, other in zip(ours, truth, strict=True)]
    if problem.resets is not None:
        truth = FastRNN("reference", wider).build(problem)()
    kept = [tensor.detach() for tensor in truth]
    return parity.Standard(problem.names, kept, errors, problem.x.dtype, "torch.nn")


def checked(
    problem: Problem, standard: parity.Standard, racers: Sequence[Racer], told: dict[str, dict[str, Any]]
) -> list[Run | None]:
    """A run for each contender, or None where there is none or its results are wrong."""
    runs: list[Run | None] = []
    for racer in racers:
        print(racer.name, flush=True)  # in the log, should it hang
        runs.append(None)
        with racer.chosen():
            try:
                run = racer.contender.build(problem)
                if not isinstance(racer.contender, TorchNN):
                    told[racer.name]["allowance"] = parity.check_run(racer.contender, run(), standard)
                runs[-1] = run
            except NotServed as reason:
                told[racer.name]["not served"] = str(reason)
            except Exception as error:
                told[racer.name]["failed"] = f"{type(error).__name__}: {error}"
                if problem.case.device == "cuda":
                    torch.cuda.synchronize()  # raises where nothing works any more
    return runs


def eager(racers: Sequence[Racer], runs: list[Run | None], told: dict[str, dict[str, Any]], device: str) -> None:
    burst = cuda.burst if device == "cuda" else timing.wall_burst
    turns = [None if run is None else partial(burst, run) for run in runs]
    in_turns(racers, turns, told, EAGER)


def graphs(racers: Sequence[Racer], runs: list[Run | None], told: dict[str, dict[str, Any]]) -> None:
    """L2 is cleared before each replay."""
    burst = cuda.cold_burst(cuda.l2_clearer())
    turns: list[Callable[[int], float] | None] = []
    for racer, run in zip(racers, runs, strict=True):
        turns.append(None)
        if run is None:
            continue
        with racer.chosen():
            try:
                turns[-1] = partial(burst, cuda.capture(run).replay)
            except cuda.NotCaptured as reason:
                told[racer.name]["no graph"] = str(reason)
                torch.cuda.synchronize()
    in_turns(racers, turns, told, GRAPH)


def in_turns(
    racers: Sequence[Racer],
    turns: Sequence[Callable[[int], float] | None],
    told: dict[str, dict[str, Any]],
    kind: str,
) -> None:
    """Fills in median and quartiles of a call, in µs; `turns` take a number of calls and give their seconds."""
    calls, samples = [1] * len(racers), [[] for _ in racers]  # type: ignore[var-annotated]
    began, rounds = time.perf_counter(), -1
    while rounds < ROUNDS and (rounds < MIN_ROUNDS or time.perf_counter() - began < MOST_SECONDS):
        for index, (racer, turn) in enumerate(zip(racers, turns, strict=True)):
            if turn is None:
                continue
            with racer.chosen():
                turn(1)
                seconds = turn(calls[index]) / calls[index]
            if rounds < 0:  # the first round tells how many calls fill a turn
                calls[index] = min(MOST_CALLS, max(1, math.ceil(TURN_SECONDS / max(seconds, 1e-9))))
            else:
                samples[index].append(seconds * 1e6)
        rounds += 1
    for racer, sample, count in zip(racers, samples, calls, strict=True):
        if sample:
            told[racer.name][kind] = [round(value, 2) for value in timing.summarize(sample)]
            told[racer.name][f"{kind} calls"] = [len(sample), count]


def memory(racers: Sequence[Racer], runs: list[Run | None], told: dict[str, dict[str, Any]]) -> None:
    for racer, run in zip(racers, runs, strict=True):
        if run is not None:
            with racer.chosen():
                told[racer.name]["peak bytes"] = cuda.peak_bytes(run)
