"""OpenVINO with carried states: requests whose tensors are set once."""

from __future__ import annotations

from benchmarks.peers.openvino_engine import OpenVINO
from benchmarks.serving.session import Bound
from benchmarks.serving.task import ServingTask


def bound(task: ServingTask) -> Bound:
    return Bound(OpenVINO(task.of_peers), task)
