"""What a cell's two functions over one vector of units are called with, and what the kernels around know of a cell.

Places are addresses. Distances count elements: `block` from one parameter, input, saved value or block of gradients to
the next, the others from one state to the next. Scratch memory is padded to whole vectors, so that it is read and
written by whole ones; of everything else only the first `some` units exist.

The functions of a cell that looks at means over units go over all units of a row instead, several times: a mean is
known once all units have been seen. They are `step(like, places, finish, row, units, kept)`, and the derivative alike.
`places(row, like, unit)` -> `StepAt` for the vector from a unit on, or dh and `DerivativeAt`: each pass asks for it.
`finish(row, like, unit, at, h)` takes the result, once. `row` is for these two alone; `kept` is scratch memory for
`step_kept` or `derivative_kept` vectors for each of the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class StepAt(NamedTuple):
    """Of a step, `step(like, at, some)`, which returns h. Of what a cell has not, the place is not looked at."""

    gx: int  # the x gates' shares of the input's product side by side, a vector each, with their bias; scratch
    gh: int  # as gx, of the u gates and the state's product; scratch
    h: int  # before the step; scratch
    others: int  # the other states, before the step and then after it; scratch
    others_apart: int
    parameters: int
    inputs: int
    saved: int  # 0: nothing is saved
    block: int


class DerivativeAt(NamedTuple):
    """Of a derivative, `derivative(like, dh, at, some)`: from the gradient of h after the step to that which reaches h
    before it directly. Of what a cell does not look at, the place is of no account."""

    saved: int
    h_before: int
    h_after: int
    others_before: int
    before_apart: int
    others_after: int
    after_apart: int
    d_others: int  # the gradients of the other states, after the step and then before it; scratch
    d_apart: int
    parameters: int
    inputs: int
    blocks: int  # of gradients, written
    block: int
    d_parameters: int  # to which the step's share of the parameters' gradients is added; scratch
    d_parameters_apart: int


@dataclass(frozen=True)
class CellKernel:
    """A cell's functions, and how many there are of what its contract names: known when a kernel is compiled."""

    step: Any
    derivative: Any
    x_gates: int
    u_gates: int
    states: int
    parameters: int
    inputs: int
    blocks: int
    saved: int
    step_kept: int = 0
    derivative_kept: int = 0
    over_units: bool = False
