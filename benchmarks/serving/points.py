"""What is measured: layers of some size, called with some steps of some streams."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cases import MODULES
from benchmarks.serving.task import ServingTask

CALLS = 16
"""Different inputs, which come in turn."""


class Point(NamedTuple):
    cell: str
    H: int
    """Units, and inputs of the first layer."""
    T: int = 1
    """Steps of a call."""
    B: int = 1
    """Streams that a call steps."""
    layers: int = 1
    slots: int = 0
    """Streams of which a call steps other ones each time; 0 where every call steps the same."""

    @property
    def label(self) -> str:
        layers = f", {self.layers} layers" if self.layers > 1 else ""
        slots = f" of {self.slots}" if self.slots else ""
        return f"{self.cell} {self.T}x{self.B}{slots}x{self.H}{layers}"


def make_task(point: Point, weights: str, threads: int, takes_rows: bool = False) -> ServingTask:
    """The same data for the same point; torch's own random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parameters = {name: value.numpy() for name, value in make_module(point).state_dict().items()}
        x = torch.randn(CALLS, point.T, point.B, point.H).numpy()
    task = ServingTask(point.cell, point.layers, parameters, x, weights, threads)
    if not takes_rows:
        return task
    random = np.random.default_rng(0)
    rows = np.stack([random.permutation(point.slots)[: point.B] for _ in range(CALLS)])
    return task._replace(rows=rows, slots=point.slots)


def make_module(point: Point) -> nn.Module:
    """The layers from torch.nn."""
    name, arguments = MODULES[point.cell]
    module: nn.Module = getattr(nn, name)(point.H, point.H, point.layers, **arguments)
    return module


def truth(point: Point, task: ServingTask) -> Tensor:
    """What the calls give, from zero states, by torch.nn in float64: (CALLS, T, B, H)."""
    module = make_module(point).double()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in task.parameters.items()})
    states = [torch.zeros(point.layers, task.slots or point.B, point.H).double() for _ in task.of_peers.states]
    rows = torch.arange(point.B).repeat(CALLS, 1) if task.rows is None else torch.from_numpy(task.rows)
    outputs = []
    with torch.no_grad():
        for x, index in zip(torch.from_numpy(task.x).double(), rows, strict=True):
            before = tuple(state[:, index] for state in states)
            y, after = module(x, before if len(before) > 1 else before[0])
            for state, new in zip(states, after if isinstance(after, tuple) else (after,), strict=True):
                state[:, index] = new
            outputs.append(y)
    return torch.stack(outputs)
