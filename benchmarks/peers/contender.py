"""A peer as a contender."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.cases import CELL, Case, Problem
from benchmarks.contenders import NotServed
from benchmarks.peers.process import PeerProcess
from benchmarks.peers.rest import rest
from benchmarks.peers.task import Task

PEERS: dict[str, tuple[str, str]] = {
    "onnxruntime": ("ONNX Runtime", "benchmarks.peers.onnxruntime_engine:OnnxRuntime"),
    "openvino": ("OpenVINO", "benchmarks.peers.openvino_engine:OpenVINO"),
}
"""By package: its name, and its engine."""
MODEL_PACKAGE = "onnx"
TOLERANCE = 1e-4
"""The relative error that a peer's results may have: their activations are approximations of their own."""


class Peer:
    """A library in a process of its own; it runs forward, in float32, without resets."""

    is_peer = True
    tolerance = TOLERANCE

    def __init__(self, process: PeerProcess) -> None:
        self.process = process

    @property
    def name(self) -> str:
        return self.process.name

    def build(self, problem: Problem) -> PeerRun:
        reason = why_not(problem.case)
        if reason is not None:
            raise NotServed(f"{self.name} {reason}")
        self.process.ask("build", task_of(problem, torch.get_num_threads()))
        return PeerRun(self.process, problem.case)

    def close(self) -> None:
        self.process.close()


class PeerRun:
    """A run that a peer performs; it times its own turns: see `timing.TimesItself`."""

    def __init__(self, process: PeerProcess, case: Case) -> None:
        self.process = process
        self.case = case

    def __call__(self) -> Sequence[Any]:
        results = [torch.from_numpy(array) for array in self.process.ask("run")]
        if self.case.mode == CELL:
            return [state.squeeze(0) for state in results[1:]]
        return results

    def turn(self, untimed: int, timed: int) -> tuple[float, float]:
        rest()
        untimed_seconds, timed_seconds = self.process.ask("turn", untimed, timed)
        return untimed_seconds, timed_seconds


def peer(package: str) -> Peer:
    """The peer of `PEERS` with that package."""
    return Peer(PeerProcess(*PEERS[package]))


def missing(package: str) -> list[str]:
    """Which packages this peer needs and does not find."""
    return [name for name in (MODEL_PACKAGE, package) if importlib.util.find_spec(name) is None]


def can_stop() -> bool:
    """Whether this system can stop a process and let it go on."""
    return os.name == "posix"


def why_not(case: Case) -> str | None:
    """Why peers do not run `case`, or None."""
    if case.training:
        return "does not train"
    if case.resets:
        return "takes no resets"
    if case.dtype != "float32":
        return f"is measured in float32, not {case.dtype}"
    return None if case.device == "cpu" else "is measured on the CPU"


def task_of(problem: Problem, threads: int) -> Task:
    case = problem.case
    # torch's cells name the same weights without a layer.
    suffix = "_l0" if case.mode == CELL else ""
    weights = {f"{name}{suffix}": weight.numpy() for name, weight in problem.weights.items()}
    return Task(case.cell, case.layers, case.bidirectional, weights, problem.x.numpy(), case.streaming, threads)
