"""The stages, in order of their worth: whatever is cut off by time is the least telling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.smoke import PRECISIONS
from benchmarks.gpu.workers import Job
from fastrnn.cells import CELLS

HALVES = (PRECISIONS[:2], PRECISIONS[2:])
"""Of the dtypes: Triton's kernels take seconds each to compile, so that its jobs are twice as many."""
WAYS = ("block", "cluster", "grid")
"""Of the CUDA kernels, as FASTRNN_CUDA_WAY names them."""
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
    options = {"device": "cpu", "small": True} if dry else {}
    interpreted = {"TRITON_INTERPRET": "1"} if dry else {}
    jobs = []
    for cell in ("lstm",) if dry else CELLS:
        jobs += [
            Job(
                f"cuda {way} {cell}",
                "benchmarks.gpu.smoke",
                {"backend": f"cuda {way}", "cells": [cell], "precisions": PRECISIONS[:3], **options},
                {"FASTRNN_CUDA_WAY": way},
            )
            for way in WAYS
        ]
        jobs += [
            Job(
                f"triton {cell} {' '.join(half)}",
                "benchmarks.gpu.smoke",
                {"backend": "triton", "cells": [cell], "precisions": half, **options},
                interpreted,
            )
            for half in HALVES
        ]
    warmers = [Job(f"warm {part}", "benchmarks.gpu.warm", {"part": part, "parts": WARMERS}) for part in range(WARMERS)]
    return jobs if dry else jobs + warmers


def _race(dry: bool) -> list[Job]:
    return [Job("race", "benchmarks.gpu.race", {"device": "cpu", "dry": True} if dry else {})]


def _cells(dry: bool) -> list[Job]:
    return [Job("cells", "benchmarks.gpu.cells", {"device": "cpu", "dry": True} if dry else {})]


def _ceilings(dry: bool) -> list[Job]:
    return [] if dry else [Job("ceilings", "benchmarks.gpu.ceilings")]


def _prove(dry: bool) -> list[Job]:
    return [Job("prove", "benchmarks.gpu.prove", {"dry": dry}, silence=240)]


def _sanitize(dry: bool) -> list[Job]:
    return [] if dry else [Job("sanitize", "benchmarks.gpu.sanitize", silence=120)]


STAGES = (
    Stage("machine", 20, _machine),
    Stage("build", 90, _build),
    Stage("smoke", 80, _smoke),
    Stage("race", 150, _race),
    Stage("cells", 40, _cells),
    Stage("ceilings", 25, _ceilings),
    Stage("prove", 80, _prove),
    Stage("sanitize", 35, _sanitize),
)
NAMES = tuple(stage.name for stage in STAGES)
DEFAULT_MINUTES = sum(stage.seconds for stage in STAGES) / 60
