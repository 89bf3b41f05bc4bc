"""A cell's contract: what everything that surrounds its step must know of it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastrnn.cells.compiler.program import Program

States = tuple[Tensor, ...]
KEY_LENGTH = 12
"""digits of the hash by which cells of one name are told apart"""


@dataclass(frozen=True)
class Run:
    """Gates that lie side by side in a weight's rows as well as among the blocks."""

    block: int
    """the first one's place among the blocks"""
    gate: int
    """its place among the rows, in gates"""
    count: int

    def columns(self, size: int) -> slice:
        """The columns of this run where each block has `size`."""
        return slice(self.block * size, (self.block + self.count) * size)

    def rows(self, size: int) -> slice:
        """The rows of this run where each gate has `size`."""
        return slice(self.gate * size, (self.gate + self.count) * size)


def _as_they_arrive(d_after: States, *_: States) -> States:
    return d_after


def _nothing(*_: States) -> States:
    return ()


@dataclass(frozen=True)
class Cell:
    """A recurrent cell: a step of one unit of one sequence, its derivative, and what passes between the two.

    A step takes each gate's share of the input's product, gx (..., Gx, H), and of the state's, gh (..., Gu, H), each
    with its own bias, and the states before it. The gradients of both lie in *blocks*: first those of gates that have a
    share of the input's product alone, then of those whose two shares are only ever added, so that one serves both,
    then of those that have a share of the state's alone. So the blocks of gx are neighbours, and those of gh. The
    gates' pre-activations have the same order.
    """

    name: str
    x_gates: tuple[str, ...]
    """those with a share of the input's product: each has H rows of `weight_ih`"""
    u_gates: tuple[str, ...]
    """those with a share of the state's product: each has H rows of `weight_hh`"""
    states: tuple[str, ...]
    """The first is h, the output; the others are internal and kept in the compute dtype."""
    parameters: tuple[str, ...]
    """one value for each unit, (H,)"""
    inputs: tuple[str, ...]
    """one value for each unit, sequence and step, (B, H)"""
    blocks: tuple[str, ...]
    """x_ and the gate's name for the input's share alone, a_ for the sum of both, u_ for the state's share alone; then
    parameters and inputs whose gradients only the recurrence can tell"""
    saved: tuple[str, ...]
    """what backward needs beside the states, one (..., H) each, in the order of the saved tensor's blocks"""
    unbounded: tuple[str, ...]
    """of `saved`, what may be larger than a number of 16 bits"""
    activations: dict[str, str] = field(hash=False)
    """of saved values and states, which are a sigmoid, a tanh or a relu"""
    step_reads: tuple[str, ...]
    """of the states before it, what a step looks at, the state's product aside"""
    reads_before: tuple[str, ...]
    """of the states before the step, what the derivative looks at"""
    reads_after: tuple[str, ...]
    """of the states after the step, what the derivative looks at"""
    outside: tuple[str, ...]
    """of parameters, inputs and u's blocks, those whose gradients `gradients_outside` gives"""
    step: Callable[..., tuple[States, States]]
    """`step(gx, gh, before, parameters=(), inputs=())` -> the states after the step, and what it saves"""
    step_backward: Callable[..., tuple[States, States]]
    """`step_backward(d_after, saved, before, after, parameters=(), inputs=())` -> the blocks' gradients, and those that
    reach the states before the step directly, that is, not through gh"""
    d_states: Callable[..., States] = _as_they_arrive
    """of the same arguments: all that reaches each state after the step, through the other states as well"""
    gradients_outside: Callable[..., States] = _nothing
    """`gradients_outside(blocks, saved, before, after, parameters=(), inputs=())` -> gradients that follow from those
    of the blocks, one for each name in `outside`: of a u from the blocks of x, those of sums included"""
    over_units: bool = False
    """whether a step, and so its derivative, looks at all units of a sequence: at a mean"""
    program: Program | None = field(default=None, repr=False, compare=False)
    """what it was made from; None of the built-in cells, whose code was made beforehand"""

    @cached_property
    def key(self) -> str:
        """By which layers and kernels look it up: see `fastrnn.cells.known`."""
        if self.program is None:
            return self.name
        return f"{self.name}_{hashlib.sha256(self.program.text.encode()).hexdigest()[:KEY_LENGTH]}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A user's cell is pickled by its name, as its function would be, if others find it there, else as its program;
        it is its own copy."""
        if self.program is None:
            return super().__reduce_ex__(protocol)
        module, name = (vars(self).get(key, "") for key in ("__module__", "__qualname__"))
        if module != "__main__" and _named(module, name) is self:
            return name
        from fastrnn.cells.known import of_text

        return of_text, (self.program.text,)

    def __copy__(self) -> Cell:
        return self

    def __deepcopy__(self, memo: Any) -> Cell:
        return self

    @cached_property
    def dgx(self) -> tuple[int, ...]:
        """Which block is the gradient of each x gate."""
        return self._places(self.x_gates, "x")

    @cached_property
    def dgh(self) -> tuple[int, ...]:
        """Which block is the gradient of each u gate."""
        return self._places(self.u_gates, "u")

    def _places(self, gates: tuple[str, ...], share: str) -> tuple[int, ...]:
        return tuple(
            self.blocks.index(name if (name := f"{share}_{gate}") in self.blocks else f"a_{gate}") for gate in gates
        )

    @cached_property
    def adds_shares(self) -> bool:
        """Whether every gate only adds its two shares: gx and gh have the same gradient, and one bias does for both."""
        return self.dgx == self.dgh

    @cached_property
    def x_runs(self) -> tuple[Run, ...]:
        """The x gates as their blocks follow one another: products go by runs, so that nothing is moved."""
        return _runs(self.dgx)

    @cached_property
    def u_runs(self) -> tuple[Run, ...]:
        """As `x_runs`, of the u gates."""
        return _runs(self.dgh)

    def of_gates(self, blocks: Tensor, places: tuple[int, ...]) -> Tensor:
        """dgx or dgh, (..., G, H) in the order of the gates, from blocks (..., W, H) and `dgx` or `dgh`."""
        first, count = places[0] if places else 0, len(places)
        if places == tuple(range(first, first + count)):
            return blocks.narrow(-2, first, count)
        return torch.stack([blocks.select(-2, place) for place in places], -2)


def _named(module: str, name: str) -> Any:
    """What a module that is loaded has under this name, None where there is nothing."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _runs(places: tuple[int, ...]) -> tuple[Run, ...]:
    """In the order of the blocks."""
    runs: list[Run] = []
    for block, gate in sorted((block, gate) for gate, block in enumerate(places)):
        last = runs[-1] if runs else None
        if last is not None and (last.block + last.count, last.gate + last.count) == (block, gate):
            runs[-1] = replace(last, count=last.count + 1)
        else:
            runs.append(Run(block, gate, 1))
    return tuple(runs)
