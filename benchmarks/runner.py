"""One case from data to figures: parity, then times side by side, then memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks import cuda, memory, parity, precision, timing
from benchmarks.cases import Case, Problem, make_problem
from benchmarks.contenders import Contender, NotServed, Run, TorchNN
from benchmarks.peers.process import PeerFailed
from benchmarks.timing import Summary, Timing

MEASURED, NOT_SERVED, FAILED = "measured", "not served", "failed"
SPEAKING = (parity.Mismatch, PeerFailed)
"""Errors whose messages say all."""
EAGER_SHARE = 0.5
"""Of a case's budget on a GPU: the rest is for the graphs."""


@dataclass
class Entry:
    """What is known of one contender in one case."""

    contender: str
    status: str = MEASURED
    """MEASURED, NOT_SERVED where the contender does not cover the case, or FAILED."""
    reason: str | None = None
    """Why it was not measured."""
    allowance: float | None = None
    """The largest share, 0 to 1, of the error that parity allows; None for torch.nn itself."""
    is_peer: bool = False
    """Whether it is another library that fastrnn is held against besides torch.nn."""
    seconds: Summary | None = None
    """Of a call, in streaming of one step; on a GPU of an eager one, by its clock and with the launch gaps."""
    rounds: int = 0
    calls: int = 0
    """In each round."""
    ratio: Summary | None = None
    """The baseline's time over this one's: above 1, this one is ahead. None for the baseline itself, and without it."""
    best_peer: str | None = None
    """The peer with the least median time, for those that are neither peers nor the baseline."""
    peer_ratio: Summary | None = None
    """The best peer's time over this one's."""
    graph_seconds: Summary | None = None
    """Of a call replayed as a CUDA graph, on a GPU."""
    graph_ratio: Summary | None = None
    """As `ratio`, of the graphs."""
    graph_note: str | None = None
    """Why there is no graph, if there was to be one and the call could not be captured."""
    peak_bytes: int | None = None
    memory_note: str | None = None
    """Why there is no peak memory, if it was to be measured and could not be."""

    @property
    def failed(self) -> bool:
        return self.status == FAILED


@dataclass
class CaseResult:
    """One case's figures: the baseline's, and those of every other contender."""

    case: Case
    baseline: Entry
    entries: list[Entry]

    @property
    def failed(self) -> bool:
        return self.baseline.failed or any(entry.failed for entry in self.entries)

    @property
    def all_entries(self) -> list[Entry]:
        return [self.baseline, *self.entries]


def measure_case(
    case: Case,
    contenders: Sequence[Contender],
    budget: float,
    with_memory: bool = True,
    baseline: Contender | None = None,
) -> CaseResult:
    """Measures `baseline`, or torch.nn, and `contenders` on `case`, taking turns for `budget` seconds in all.

    A contender that raises, or whose results are wrong, becomes an entry without a time; without the baseline's time
    there are no ratios.
    """
    everyone = (baseline or TorchNN(), *contenders)
    first, *others = [Entry(contender.name, is_peer=is_peer(contender)) for contender in everyone]
    result = CaseResult(case, first, others)
    with precision.products(case.dtype), case.grad_mode():
        try:
            problem = make_problem(case)
            standard = parity.standard(problem)
        except Exception as error:
            fail(result.baseline, error)
            for entry in result.entries:
                entry.status, entry.reason = NOT_SERVED, "torch.nn failed: nothing to compare with"
            return result
        runs = checked_runs(with_copies(problem), standard, everyone, result.all_entries)
        del problem, standard
        if case.device == "cuda":
            time_runs(result, runs, EAGER_SHARE * budget, cuda.burst)
            time_graphs(result, runs, (1 - EAGER_SHARE) * budget)
        else:
            time_runs(result, runs, budget)
        if with_memory:
            measure_memory(result, everyone, runs)
    return result


def is_peer(contender: Contender) -> bool:
    return getattr(contender, "is_peer", False)


def with_copies(problem: Problem) -> Problem:
    """`problem`, on a GPU with as many copies of its inputs as exceed its L2 cache."""
    if problem.case.device != "cuda":
        return problem
    inputs = (problem.x, problem.dy) if problem.case.training else (problem.x,)
    return problem._replace(copies=cuda.copies(inputs, cuda.l2_bytes()))


def checked_runs(
    problem: Problem, standard: parity.Standard, contenders: Sequence[Contender], entries: Sequence[Entry]
) -> list[Run | None]:
    """A run for each contender, or None where there is none or its results are wrong; the entry then says why."""
    runs: list[Run | None] = []
    for contender, entry in zip(contenders, entries, strict=True):
        run = None
        try:
            candidate = contender.build(problem)
            if not isinstance(contender, TorchNN):
                entry.allowance = parity.check_run(contender, candidate(), standard)
            run = candidate
        except NotServed as error:
            entry.status, entry.reason = NOT_SERVED, str(error)
        except Exception as error:
            fail(entry, error)
        runs.append(run)
    return runs


def time_runs(
    result: CaseResult, runs: list[Run | None], budget: float, burst: timing.Burst = timing.wall_burst
) -> None:
    """Fills in the times and ratios of those that have a run; the baseline's comes first.

    One that fails now loses its run, and the others begin anew.
    """
    while True:
        timed = [index for index, run in enumerate(runs) if run is not None]
        if not timed:
            return
        try:
            timings = timing.interleave([run for run in runs if run is not None], budget, burst)
            break
        except timing.CallFailed as failure:
            index = timed[failure.index]
            fail(result.all_entries[index], failure.__cause__)
            runs[index] = None
    steps = result.case.calls
    measured: list[tuple[Entry, Timing]] = []
    for index, (seconds, calls) in zip(timed, timings, strict=True):
        entry, times = result.all_entries[index], Timing([value / steps for value in seconds], calls)
        entry.seconds = timing.summarize(times.seconds)
        entry.rounds, entry.calls = len(times.seconds), times.calls
        measured.append((entry, times))
    base = measured[0][1] if measured[0][0] is result.baseline else None
    peers = [(entry, times) for entry, times in measured if entry.is_peer]
    best = min(peers, key=lambda pair: timing.summarize(pair[1].seconds).median, default=None)
    for entry, times in measured:
        if entry is result.baseline:
            continue
        if base is not None:
            entry.ratio = timing.ratio(base, times)
        if best is not None and not entry.is_peer:
            entry.best_peer, entry.peer_ratio = best[0].contender, timing.ratio(best[1], times)


def time_graphs(result: CaseResult, runs: Sequence[Run | None], budget: float) -> None:
    """Fills in the times and ratios of the runs' CUDA graphs, of those that can be captured."""
    graphs: list[tuple[Entry, Callable[[], object]]] = []
    for entry, run in zip(result.all_entries, runs, strict=True):
        if run is None:
            continue
        try:
            graphs.append((entry, cuda.capture(run).replay))
        except cuda.NotCaptured as error:
            entry.graph_note = str(error)
    if not graphs:
        return
    timings = timing.interleave([replay for _, replay in graphs], budget, cuda.cold_burst(cuda.l2_clearer()))
    base = timings[0] if graphs[0][0] is result.baseline else None
    for (entry, _), times in zip(graphs, timings, strict=True):
        entry.graph_seconds = timing.summarize(times.seconds)
        if entry is not result.baseline and base is not None:
            entry.graph_ratio = timing.ratio(base, times)


def measure_memory(result: CaseResult, contenders: Sequence[Contender], runs: Sequence[Run | None]) -> None:
    """Fills in the peak memory of those that were measured: on a GPU here, on the CPU by processes of their own.

    Not of peers, whose memory their own processes hold.
    """
    for contender, entry, run in zip(contenders, result.all_entries, runs, strict=True):
        if run is None or entry.is_peer:
            continue
        try:
            if result.case.device == "cuda":
                entry.peak_bytes = cuda.peak_bytes(run)
            else:
                entry.peak_bytes = memory.peak_bytes(contender, result.case, torch.get_num_threads())
        except memory.MemoryNotMeasured as error:
            entry.memory_note = str(error)


def fail(entry: Entry, error: BaseException | None) -> None:
    """Turns an entry into a failure; what does not explain itself is named by its type."""
    entry.status = FAILED
    entry.reason = str(error) if isinstance(error, SPEAKING) else f"{type(error).__name__}: {error}"
