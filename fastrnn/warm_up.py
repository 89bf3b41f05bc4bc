"""`python -m fastrnn --warm-up`: the CPU backend's kernels are compiled now, so that no later call waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from fastrnn.backends import numba as backend
from fastrnn.backends.numba import compile as kernels
from fastrnn.backends.numba import kernel_files
from fastrnn.backends.numba.arguments import FIELDS
from fastrnn.cells import CELLS

STREAM_TASKS = tuple(task for task in FIELDS if task.startswith(kernels.STREAM))
TASKS = tuple(task for task in FIELDS if task not in STREAM_TASKS)
"""The kinds of kernels, those of streams apart: every kind has its fields of arguments."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""Those that kernels compute in; 16-bit tensors take float32's."""
DEFAULT_DTYPES = ("float32",)
COMPILED, FOUND, LOST = "compiled", "found", "not kept"
"""What became of a kernel: it was compiled and is on disk; it was there; it was compiled and could not be kept."""


@dataclass(frozen=True)
class Warmed:
    """A kernel that is ready now."""

    name: str
    outcome: str
    """COMPILED, FOUND or LOST"""
    seconds: float


@dataclass
class Report:
    """What was done, and where the kernels are kept."""

    directory: Path | None
    kernels: list[Warmed] = field(default_factory=list)
    reason: str | None = None
    """why a later call may have to wait all the same, if it may"""

    @property
    def seconds(self) -> float:
        return sum(kernel.seconds for kernel in self.kernels)

    def to_json(self) -> dict[str, Any]:
        """As JSON's types."""
        directory = None if self.directory is None else str(self.directory)
        return {
            "directory": directory,
            "kernels": [asdict(kernel) for kernel in self.kernels],
            "seconds": self.seconds,
            "reason": self.reason,
        }


def warm_up(
    cells: Iterable[str] = tuple(CELLS), dtypes: Iterable[str] = DEFAULT_DTYPES, streams: bool = False
) -> Report:
    """Compiles the kernels of `cells` in `dtypes`, and of their streams if asked, or loads those that are on disk."""
    reason = backend.ready()
    if reason is not None:
        return Report(None, reason=f"the backend numba cannot run here: {reason}")
    read, kept = kernel_files.places()
    if not read:
        return Report(None, reason="kernels cannot be kept: no directory can be written to; set FASTRNN_CACHE_DIR")
    report = Report(read[0])
    for cell, task, dtype in wanted(cells, dtypes, streams):
        report.kernels.append(warm(cell, task, dtype, read))
    if any(kernel.outcome == COMPILED for kernel in report.kernels):
        report.directory = kept
    lost = [kernel.name for kernel in report.kernels if kernel.outcome == LOST]
    if lost:
        report.reason = f"could not be kept in {report.directory}: {', '.join(lost)}"
    return report


def wanted(cells: Iterable[str], dtypes: Iterable[str], streams: bool = False) -> Iterator[tuple[str, str, str]]:
    """Cell, task and dtype of each kernel, once; what serves every cell has none, and streams are float32 alone."""
    own = [task for task in TASKS if task not in kernels.SHARED]
    for dtype in dict.fromkeys(dtypes):
        yield from (("", task, dtype) for task in kernels.SHARED if task != kernels.PARALLEL)
        yield from ((cell, task, dtype) for cell in dict.fromkeys(cells) for task in own)
    if streams:
        yield from ((cell, task, DEFAULT_DTYPES[0]) for cell in dict.fromkeys(cells) for task in STREAM_TASKS)
    yield "", kernels.PARALLEL, DEFAULT_DTYPES[0]


def warm(cell: str, task: str, dtype: str, directories: Iterable[Path]) -> Warmed:
    """Loads one kernel, or compiles it."""
    name = "_".join(part for part in (cell, task, dtype) if part)
    before, start = written(directories, name), time.perf_counter()
    kernels.kernel(cell, task, DTYPES[dtype])
    seconds, after = time.perf_counter() - start, written(directories, name)
    return Warmed(name, LOST if after is None else FOUND if after == before else COMPILED, seconds)


def written(directories: Iterable[Path], name: str) -> int | None:
    """When a kernel's file was last written, in nanoseconds; None if there is none."""
    files = (path for directory in directories for path in directory.glob(f"{name}.*"))
    return max((path.stat().st_mtime_ns for path in files), default=None)


def table(report: Report) -> Table:
    """A row for each kernel, and one for the time of all."""
    result = Table(box=None, pad_edge=False)
    result.add_column("kernel", no_wrap=True)
    result.add_column("")
    result.add_column("seconds", justify="right")
    for kernel in report.kernels:
        result.add_row(kernel.name.replace("_", " "), kernel.outcome, f"{kernel.seconds:.2f}")
    result.add_row("in all", "", f"{report.seconds:.2f}", style="bold")
    return result
