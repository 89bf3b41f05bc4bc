"""torch.nn with carried states, and its states gathered from those of many streams and scattered back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import MODULES
from benchmarks.peers.task import Array
from benchmarks.serving.session import Session
from benchmarks.serving.task import INT8, ServingTask


def module_of(namespace: Any, task: ServingTask) -> Any:
    """The task's module from torch.nn or fastrnn."""
    name, arguments = MODULES[task.cell]
    module = getattr(namespace, name)(task.x.shape[3], task.hidden_size, task.layers, **arguments)
    module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in task.parameters.items()})
    return module.eval()


def quantised(module: nn.Module) -> Any:
    """The module with torch's dynamic int8, which replaces children only. Raises ValueError where it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and nothing else is in torch
        parent = torch.ao.quantization.quantize_dynamic(nn.Sequential(module), {type(module)}, dtype=torch.qint8)
    if isinstance(parent[0], type(module)):
        raise ValueError(f"torch.ao.quantization leaves {type(module).__name__} as it is")
    return parent[0]


class Module(Session):
    """A module with torch.nn's interface."""

    def __init__(self, task: ServingTask) -> None:
        self.task = task
        self.module = self.make()
        self.state: Any = None
        self.zeros = (torch.zeros(task.layers, task.slots or task.x.shape[2], task.hidden_size),) * self.states
        self.reset()
        self.calls = self.make_calls()

    def make(self) -> Any:
        module = module_of(nn, self.task)
        return quantised(module) if self.task.weights == INT8 else module

    @property
    def states(self) -> int:
        return len(self.task.of_peers.states)

    def make_calls(self) -> list[partial[Any]]:
        return [partial(self.call, x) for x in torch.from_numpy(self.task.x.copy())]

    def call(self, x: Tensor) -> Any:
        y, self.state = self.module(x, self.state)
        return y

    def reset(self) -> None:
        """As `Session.reset`."""
        self.state = self.zeros if self.states > 1 else self.zeros[0]

    def output(self, index: int, returned: Any) -> Array:
        """As `Session.output`."""
        found: Array = returned.numpy().copy()
        return found

    @contextmanager
    def context(self) -> Iterator[None]:
        """As `Session.context`."""
        torch.set_num_threads(self.task.threads)
        with torch.inference_mode():
            yield


class Gathered(Module):
    """A tensor for each state of all streams, of which a call takes rows out and puts them back."""

    def make_calls(self) -> list[partial[Any]]:
        """As `Module.make_calls`."""
        assert self.task.rows is not None
        x, rows = torch.from_numpy(self.task.x.copy()), torch.from_numpy(self.task.rows.copy())
        return [partial(self.call_rows, *one) for one in zip(x, rows, strict=True)]

    def call_rows(self, x: Tensor, rows: Tensor) -> Any:
        taken = [state.index_select(1, rows) for state in self.kept]
        y, after = self.module(x, tuple(taken) if len(taken) > 1 else taken[0])
        for state, one in zip(self.kept, after if isinstance(after, tuple) else (after,), strict=True):
            state.index_copy_(1, rows, one)
        return y

    def reset(self) -> None:
        """As `Session.reset`."""
        self.kept = [zeros.clone() for zeros in self.zeros]
