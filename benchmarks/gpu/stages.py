"""The stages, in order of their worth: whatever is cut off by time is the least telling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.gpu.smoke import OTHERS, PRECISIONS
from benchmarks.gpu.workers import Job
from fastrnn.cells import CELLS

HALVES = (PRECISIONS[:2], PRECISIONS[2:])
"""Of the dtypes: Triton's kernels take seconds each to compile, so that its jobs are twice as many."""
WAYS = ("block", "cluster", "grid")
"""Of the CUDA kernels, as FASTRNN_CUDA_WAY names them."""
RUN_TIME = (("peephole_lstm", "slstm"), ("zoneout_lstm", "mgu"))
"""Cells whose CUDA kernels NVRTC compiles, by the jobs that try them."""
INTERPRETED = {"TRITON_INTERPRET": "1"}
WARMERS = 6
"""Processes that compile what the race will run."""


@dataclass(frozen=True)
class Stage:
    """Jobs that run side by side."""

    name: str
    seconds: float
    """at most, where all stages have `DEFAULT_MINUTES`"""
    jobs: Callable[[bool], list[Job]]
    """of a dry run, or of one on a GPU"""


def _machine(dry: bool) -> list[Job]:
    return [Job("machine", "benchmarks.gpu.machine", {"device": "cpu" if dry else "cuda"})]


def _build(dry: bool) -> list[Job]:
    return [Job("build", "benchmarks.gpu.build", {"host": dry}, silence=300)]


def _smoke(dry: bool) -> list[Job]:
    """The CUDA kernels in each way, Triton's, and the processes that compile for the race meanwhile."""
    if dry:
        return [*(_cuda(way, ("lstm",), dry) for way in WAYS), _triton(("lstm", *OTHERS), PRECISIONS, dry)]
    jobs = [_cuda(way, cells) for cells in (*((cell,) for cell in CELLS), *RUN_TIME) for way in WAYS]
    jobs += [_triton((cell,), half) for cell in CELLS for half in HALVES]
    jobs += [_triton((cell,), (precision,)) for cell in OTHERS for precision in ("bfloat16", "float32")]
    options = [{"part": part, "parts": WARMERS} for part in range(WARMERS)]
    return jobs + [Job(f"warm {part}", "benchmarks.gpu.warm", given) for part, given in enumerate(options)]


def _cuda(way: str, cells: Sequence[str], dry: bool = False) -> Job:
    return _smokes(f"cuda {way}", cells, PRECISIONS[:3], {"FASTRNN_CUDA_WAY": way}, dry)


def _triton(cells: Sequence[str], precisions: Sequence[str], dry: bool = False) -> Job:
    return _smokes("triton", cells, precisions, INTERPRETED if dry else {}, dry)


def _smokes(
    backend: str, cells: Sequence[str], precisions: Sequence[str], environment: dict[str, str], dry: bool
) -> Job:
    options = {"backend": backend, "cells": cells, "precisions": precisions}
    options |= {"device": "cpu", "small": True} if dry else {}
    return Job(" ".join((backend, *cells, *precisions)), "benchmarks.gpu.smoke", options, environment, silence=60)


def _race(dry: bool) -> list[Job]:
    return [_timed("race", dry)]


def _cells(dry: bool) -> list[Job]:
    return [_timed("cells", dry)]


def _timed(name: str, dry: bool) -> Job:
    options, environment = ({"device": "cpu", "dry": True}, INTERPRETED) if dry else ({}, {})
    return Job(name, f"benchmarks.gpu.{name}", options, environment)


def _ceilings(dry: bool) -> list[Job]:
    return [] if dry else [Job("ceilings", "benchmarks.gpu.ceilings")]


def _prove(dry: bool) -> list[Job]:
    return [Job("prove", "benchmarks.gpu.prove", {"dry": dry}, silence=240)]


def _sanitize(dry: bool) -> list[Job]:
    return [] if dry else [Job("sanitize", "benchmarks.gpu.sanitize", silence=120)]


STAGES = (
    Stage("machine", 20, _machine),
    Stage("build", 90, _build),
    Stage("smoke", 120, _smoke),
    Stage("race", 150, _race),
    Stage("cells", 40, _cells),
    Stage("ceilings", 25, _ceilings),
    Stage("prove", 80, _prove),
    Stage("sanitize", 35, _sanitize),
)
NAMES = tuple(stage.name for stage in STAGES)
DEFAULT_MINUTES = sum(stage.seconds for stage in STAGES) / 60
