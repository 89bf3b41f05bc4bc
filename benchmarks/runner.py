"""One case from data to figures: parity, then times side by side, then memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks import memory, parity, timing
from benchmarks.cases import Case, Problem, make_problem
from benchmarks.contenders import Contender, NotServed, Run, TorchNN
from benchmarks.timing import Summary, Timing

MEASURED, NOT_SERVED, FAILED = "measured", "not served", "failed"


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
    seconds: Summary | None = None
    """Of a call."""
    rounds: int = 0
    calls: int = 0
    """In each round."""
    ratio: Summary | None = None
    """torch.nn's time over this one's: above 1, this one is ahead. None for torch.nn itself."""
    peak_bytes: int | None = None
    memory_note: str | None = None
    """Why there is no peak memory, if it was to be measured and could not be."""

    @property
    def failed(self) -> bool:
        return self.status == FAILED


@dataclass
class CaseResult:
    """One case's figures: torch.nn's, and those of every other contender."""

    case: Case
    baseline: Entry
    entries: list[Entry]

    @property
    def failed(self) -> bool:
        return self.baseline.failed or any(entry.failed for entry in self.entries)


def measure_case(case: Case, contenders: Sequence[Contender], budget: float, with_memory: bool = True) -> CaseResult:
    """Measures torch.nn and `contenders` on `case`, taking turns for `budget` seconds in all.

    A contender that raises, or whose results differ from torch.nn's, becomes an entry without a time.
    """
    problem = make_problem(case)
    baseline = TorchNN()
    result = CaseResult(case, Entry(baseline.name), [Entry(contender.name) for contender in contenders])
    with case.grad_mode():
        try:
            runs: list[Run | None] = [baseline.build(problem)]
        except Exception as error:
            fail(result.baseline, error)
            for entry in result.entries:
                entry.status, entry.reason = NOT_SERVED, "torch.nn failed: nothing to compare with"
            return result
        runs += checked_runs(problem, contenders, result.entries)
        time_runs(result, runs, budget)
    if with_memory:
        entries = (result.baseline, *result.entries)
        for contender, entry in zip((baseline, *contenders), entries, strict=True):
            if entry.status == MEASURED:
                measure_memory(entry, contender, case)
    return result


def checked_runs(problem: Problem, contenders: Sequence[Contender], entries: Sequence[Entry]) -> list[Run | None]:
    """A run for each contender, or None where there is none or its results are wrong; the entry then says why."""
    truth = TorchNN(torch.float64).build(problem)()
    ours = TorchNN().build(problem)()
    runs: list[Run | None] = []
    for contender, entry in zip(contenders, entries, strict=True):
        run = None
        try:
            candidate = contender.build(problem)
            entry.allowance = parity.check(problem.names, candidate(), ours, truth)
            run = candidate
        except NotServed as error:
            entry.status, entry.reason = NOT_SERVED, str(error)
        except Exception as error:
            fail(entry, error)
        runs.append(run)
    return runs


def time_runs(result: CaseResult, runs: Sequence[Run | None], budget: float) -> None:
    """Fills in the times and ratios of those that have a run; torch.nn's comes first."""
    timed = [
        (entry, run) for entry, run in zip((result.baseline, *result.entries), runs, strict=True) if run is not None
    ]
    timings: list[Timing] = timing.interleave([run for _, run in timed], budget)
    for (entry, _), times in zip(timed, timings, strict=True):
        entry.seconds = timing.summarize(times.seconds)
        entry.rounds, entry.calls = len(times.seconds), times.calls
        if entry is not result.baseline:
            entry.ratio = timing.ratio(timings[0], times)


def measure_memory(entry: Entry, contender: Contender, case: Case) -> None:
    try:
        entry.peak_bytes = memory.peak_bytes(contender, case, torch.get_num_threads())
    except memory.MemoryNotMeasured as error:
        entry.memory_note = str(error)


def fail(entry: Entry, error: Exception) -> None:
    """Turns an entry into a failure; what is no mismatch is named by its type."""
    entry.status = FAILED
    entry.reason = str(error) if isinstance(error, parity.Mismatch) else f"{type(error).__name__}: {error}"
