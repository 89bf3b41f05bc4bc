"""Who runs a case: torch.nn, and fastrnn with each of its backends.

A contender builds a *run*, a function without arguments that performs the case once, from the same weights and data as
every other contender. Another peer is another class: a name, and `build` (see `torchrl_triton`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.cases import CELL, Problem, build_module

Run = Callable[[], Sequence[Any]]
"""Performs a case once. Returns what `Problem.names` names, in that order: tensors, or what torch.as_tensor takes."""

BASELINE = "torch.nn"


class NotServed(Exception):
    """A contender does not cover a case, and why: nothing is wrong, there is just nothing to measure."""


class Contender(Protocol):
    """Who runs cases. It must survive pickling, since its memory on the CPU is measured in another process.

    One that stands for another library has an attribute `is_peer` that is true, one whose results may have a larger
    error than the tests allow an attribute `tolerance`, and one that returns float32 in 16-bit cases a true `wide`.
    """

    @property
    def name(self) -> str: ...

    def build(self, problem: Problem) -> Run:
        """A run of `problem`. Raises NotServed where the contender does not cover the case."""
        ...


def make_run(
    forward: Callable[[Tensor], Sequence[Any]],
    training: bool,
    data: Sequence[tuple[Tensor, Tensor]],
    parameters: Sequence[Tensor],
) -> Run:
    """A run of `forward`, which takes x and returns the outputs and the final states, over each (x, dy) in turn."""
    turns = cycle(data)

    def infer() -> Sequence[Any]:
        return forward(next(turns)[0])

    if not training:
        return infer
    for x, _ in data:
        x.requires_grad_()

    def train() -> Sequence[Any]:
        x, dy = next(turns)
        outputs = forward(x)
        return (*outputs, *torch.autograd.grad(outputs[0], (x, *parameters), dy))

    return train


def copied(problem: Problem, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """The problem's copies of x and dy in `dtype`, each in memory of its own; dy is shared where it is not used."""
    training = problem.case.training
    return [
        (problem.x.to(dtype, copy=True), problem.dy.to(dtype, copy=True) if training else problem.dy)
        for _ in range(problem.copies)
    ]


def module_run(module: nn.Module, problem: Problem, dtype: torch.dtype, **arguments: Any) -> Run:
    """A run of a module with torch.nn's interface, loaded with the problem's weights, all in `dtype`.

    `arguments` are its forward's further ones.
    """
    module.load_state_dict(problem.weights)
    if problem.case.streaming:
        return streaming_run(module, problem, dtype)

    def forward(x: Tensor) -> Sequence[Any]:
        ys, finals = module(x, **arguments)
        return (ys, *finals) if isinstance(finals, tuple) else (ys, finals)

    parameters = dict(module.named_parameters())
    return make_run(
        forward, problem.case.training, copied(problem, dtype), [parameters[name] for name in problem.weights]
    )


def streaming_run(module: nn.Module, problem: Problem, dtype: torch.dtype) -> Run:
    """A run of a module step by step: each call reads what the one before returned, the first one zeros."""
    case = problem.case
    is_cell = case.mode == CELL
    turns = cycle([x.unbind() if is_cell else x.split(1) for x, _ in copied(problem, dtype)])
    shape = (case.shape.B, case.shape.H) if is_cell else (case.layers, case.shape.B, case.shape.H)
    zeros = problem.x.new_zeros(shape, dtype=dtype)
    initial = (zeros,) * len(case.states) if len(case.states) > 1 else zeros

    def run_cell() -> Sequence[Any]:
        states = initial
        for x in next(turns):
            states = module(x, states)
        return states if isinstance(states, tuple) else (states,)

    def run_layers() -> Sequence[Any]:
        states = initial
        for x in next(turns):
            ys, states = module(x, states)
        return (ys, *states) if isinstance(states, tuple) else (ys, states)

    return run_cell if is_cell else run_layers


@dataclass(frozen=True)
class TorchNN:
    """torch.nn in the case's dtype, or in `dtype`: in float64 it is the truth that results are compared with.

    On a GPU this is cuDNN with its weights in one piece, as it is fastest; torch chooses cuDNN's algorithm by cell,
    dtype and sizes.
    """

    dtype: torch.dtype | None = None
    name: str = BASELINE

    def build(self, problem: Problem) -> Run:
        if problem.resets is not None:
            raise NotServed("torch.nn takes no resets")
        dtype = self.dtype or problem.x.dtype
        module = build_module(nn, problem.case, dtype)
        run = module_run(module, problem, dtype)
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
        return run


@dataclass(frozen=True)
class FastRNN:
    """fastrnn with one of its backends, or with the one that "auto" chooses, in the case's dtype or in `dtype`."""

    backend: str
    dtype: torch.dtype | None = None
    prepacked: bool = False

    @property
    def name(self) -> str:
        return f"fastrnn {self.backend}{', prepacked' if self.prepacked else ''}"

    def build(self, problem: Problem) -> Run:
        import fastrnn

        if self.prepacked and problem.case.training:
            raise NotServed("weights are laid out once in inference only")
        dtype = self.dtype or problem.x.dtype
        with torch.inference_mode(False):  # as programs do: changes of parameters made under it are not counted
            module: Any = build_module(fastrnn, problem.case, dtype, backend=self.backend)
        module.prepack(self.prepacked)
        arguments = {} if problem.resets is None else {"resets": problem.resets}
        run = module_run(module, problem, dtype, **arguments)
        try:
            with problem.case.grad_mode():
                run()
        except fastrnn.backends.CannotServe as error:
            raise NotServed(str(error)) from error
        return run
