"""fastrnn with carried states: its streams, and its module with weights laid out once."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastrnn
from benchmarks.peers.task import Array
from benchmarks.serving import torch_calls
from benchmarks.serving.session import Session
from benchmarks.serving.task import ServingTask
from benchmarks.serving.torch_calls import module_of


class Module(torch_calls.Module):
    """The module, called as torch.nn's, with `prepack`."""

    def make(self) -> Any:
        """As `torch_calls.Module.make`."""
        return module_of(fastrnn, self.task).prepack()


class Stream(Session):
    """`fastrnn.stream`, one for all rows of a batch; of many streams, in their slots."""

    def __init__(self, task: ServingTask) -> None:
        _, T, B, _ = task.x.shape
        self.stream = fastrnn.stream(
            module_of(fastrnn, task),
            batch=B,
            steps=T,
            threads=task.threads,
            weights=task.weights,
            slots=task.slots or None,
        )
        x = torch.from_numpy(task.x.copy())
        if task.rows is None:
            self.calls = [partial(self.stream, one) for one in x]
        else:
            rows = torch.from_numpy(task.rows.copy())
            self.calls = [partial(self.stream, one, slots=index) for one, index in zip(x, rows, strict=True)]

    def reset(self) -> None:
        """As `Session.reset`."""
        self.stream.reset()

    def output(self, index: int, returned: Any) -> Array:
        """As `Session.output`."""
        found: Array = returned.numpy().copy()
        return found


class Separate(Session):
    """A stream for each of B rows, stepped one after the other."""

    def __init__(self, task: ServingTask) -> None:
        _, T, B, _ = task.x.shape
        module = module_of(fastrnn, task)
        self.streams = [fastrnn.stream(module, steps=T, threads=task.threads, weights=task.weights) for _ in range(B)]
        x = torch.from_numpy(task.x.copy()).transpose(1, 2).unsqueeze(3)  # (calls, B, T, 1, I)
        self.calls = [partial(self.call, [*zip(self.streams, one.contiguous(), strict=True)]) for one in x]

    def call(self, pairs: list[tuple[Any, Tensor]]) -> list[Tensor]:
        return [stream(x) for stream, x in pairs]

    def reset(self) -> None:
        """As `Session.reset`."""
        for stream in self.streams:
            stream.reset()

    def output(self, index: int, returned: Any) -> Array:
        """As `Session.output`."""
        found: Array = torch.cat(returned, 1).numpy()
        return found
