"""Who runs a case: torch.nn, and fastrnn with each of its backends.

A contender builds a *run*, a function without arguments that performs the case once, from the same weights and data as
every other contender. Another peer is another class here: a name, and `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from benchmarks.cases import Problem, build_module

Run = Callable[[], Sequence[Any]]
"""Performs a case once. Returns what `Problem.names` names, in that order: tensors, or what torch.as_tensor takes."""

BASELINE = "torch.nn"


class NotServed(Exception):
    """A contender does not cover a case, and why: nothing is wrong, there is just nothing to measure."""


class Contender(Protocol):
    """Who runs cases. It must survive pickling, since its memory is measured in another process."""

    @property
    def name(self) -> str: ...

    def build(self, problem: Problem) -> Run:
        """A run of `problem`. Raises NotServed where the contender does not cover the case."""
        ...


def module_run(module: nn.Module, problem: Problem, dtype: torch.dtype) -> Run:
    """A run of a module with torch.nn's interface, loaded with the problem's weights, all in `dtype`."""
    module.load_state_dict(problem.weights)
    x = problem.x.to(dtype, copy=True)

    def infer() -> Sequence[Any]:
        ys, finals = module(x)
        return (ys, *finals) if isinstance(finals, tuple) else (ys, finals)

    if not problem.case.training:
        return infer

    parameters = dict(module.named_parameters())
    inputs = (x.requires_grad_(), *(parameters[name] for name in problem.weights))
    dy = problem.dy.to(dtype)

    def train() -> Sequence[Any]:
        outputs = infer()
        return (*outputs, *torch.autograd.grad(outputs[0], inputs, dy))

    return train


@dataclass(frozen=True)
class TorchNN:
    """torch.nn in the case's dtype, or in `dtype`: in float64 it is the truth that results are compared with."""

    dtype: torch.dtype | None = None
    name: str = BASELINE

    def build(self, problem: Problem) -> Run:
        dtype = self.dtype or problem.x.dtype
        return module_run(build_module(nn, problem.case, dtype), problem, dtype)


@dataclass(frozen=True)
class FastRNN:
    """fastrnn with one of its backends, or with the one that "auto" chooses."""

    backend: str

    @property
    def name(self) -> str:
        return f"fastrnn {self.backend}"

    def build(self, problem: Problem) -> Run:
        import fastrnn

        dtype = problem.x.dtype
        run = module_run(build_module(fastrnn, problem.case, dtype, backend=self.backend), problem, dtype)
        try:
            with problem.case.grad_mode():
                run()
        except fastrnn.backends.CannotServe as error:
            raise NotServed(str(error)) from error
        return run
