"""What a cell is: a pointwise step, that step's derivative, and the names of what goes in and out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

States = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, States], tuple[States, tuple[Tensor, ...]]]
StepBackward = Callable[[States, tuple[Tensor, ...], States, States], tuple[Tensor, Tensor, States]]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    `step(gx, gh, states)` takes the input's and the hidden state's share of the pre-activations, each (..., G, H) and
    each with its own bias added, and the states before the step, each (..., H). It returns the states after the step
    and what `saved` names.

    `step_backward(dstates, saved, before, after)` takes the gradients of the states after the step, what `step` saved,
    and the states before and after it. It returns `dgx`, `dgh` (..., G, H) and the gradients that reach the states
    before the step directly, that is, not through `gh`.
    """

    name: str
    gates: tuple[str, ...]
    """In torch's order: the rows of `weight_ih` and `weight_hh` are these gates' blocks of H rows."""
    states: tuple[str, ...]
    """The first is h, the output; the others are internal and kept in the compute dtype."""
    saved: tuple[str, ...]
    """What backward needs beside the states, one (..., H) each, in the order of the saved tensor's blocks."""
    step: Step
    step_backward: StepBackward

    @property
    def adds_pre_activations(self) -> bool:
        """Whether `step` only ever adds gx and gh, so that dgx = dgh and both biases can be added beforehand.

        Otherwise, as in the GRU, one more value is saved than there are gates, and of the gradients that take the saved
        values' place the first G are dgx, its own last gate first, and the last G are dgh.
        """
        return len(self.saved) <= len(self.gates)
