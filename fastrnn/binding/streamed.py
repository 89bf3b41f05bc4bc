"""A plan for few sequences on the CPU, without gradients, whose weights are laid out once: by the kernels of streams.

A whole stack is one call of a kernel, by one thread. With weights in fewer bits it serves all such calls; in float32
those in which other threads would have little to share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn.backends.numba.stream_weights import StreamWeights
from fastrnn.backends.numba.streams import StreamMemory
from fastrnn.backends.stack import Stack
from fastrnn.binding import launches
from fastrnn.binding.checked import Checked
from fastrnn.binding.layouts import States
from fastrnn.binding.plans import Results
from fastrnn.cells.weights import parted
from fastrnn.lengths import Lengths
from fastrnn.watched_weights import any_freed

MOST_ROWS = 16
"""Sequences of a call: with more, each thread has enough of them for itself."""
SHARED = 6_000_000
"""Multiplications that threads might share, up to which one does them sooner: measured with LSTMs of 96 to 512 units on
two cores with AVX2."""
TEAM = 50_000
"""Multiplications of a step with the state from which on threads share those of one sequence."""


def serves(checked: Checked, stack: Stack) -> bool:
    """Whether it is to compute such a call."""
    configuration = checked.configuration
    steps, batch, _ = stack.x.shape
    if (
        not configuration.prepacked
        or not launches.is_plain(checked, stack)
        or stack.x.dtype != torch.float32
        or stack.directions > 1
        or stack.lengths is not None
        or stack.resets is not None
        or stack.inputs
        or batch > MOST_ROWS
    ):
        return False
    if configuration.prepacked_weights != "float32":
        return True
    if not launches.serves(checked, stack):
        return False
    if torch.get_num_threads() == 1:
        return True
    shared = 0
    for weights in stack.weights:
        recurrent = weights[1].numel()
        shared += weights[0].numel() + (recurrent if batch > 1 or recurrent >= TEAM else 0)
    return steps * batch * shared <= SHARED


class Streamed(launches.Launches):
    """Until weights are kept, float32 ones are laid out by `Launches`, others in each call."""

    def __init__(self, checked: Checked, stack: Stack) -> None:
        super().__init__(checked, stack)
        self.lays_out_weights = True
        self.format = checked.configuration.prepacked_weights
        self.streamed: StreamWeights | None = None
        self.free: list[StreamMemory] = []
        """for each thread that computes with them at the same time"""

    def _streamed(self) -> StreamWeights:
        layers = [parted(self.cell, [w.detach().contiguous() for w in each]) for each in self.checked.weights]
        return StreamWeights(self.cell, layers, [None] * len(layers), self.format)

    def keep_weights(self) -> None:
        """As `Plan.keep_weights`."""
        self.streamed = self._streamed()

    def run(
        self,
        input: Tensor,
        states: States | None,
        lengths: Lengths | None,
        resets: Tensor | None,
        inputs: Sequence[Tensor] = (),
    ) -> Results | None:
        """As `Plan.run`."""
        if self.streamed is None and self.format == "float32":
            return super().run(input, states, lengths, resets, inputs)
        if any_freed(input, *(states or ())):
            return None
        return self._compute(input, states)

    def results(self, stack: Stack) -> Results:
        """As `Plan.results`."""
        if self.streamed is None and self.format == "float32":
            return super().results(stack)
        layout = self.checked.layout
        return self._compute(layout.output(stack.x), layout.finals(stack.states0))

    def _compute(self, input: Tensor, states: States | None) -> Results:
        """Of arguments as the caller lays them out."""
        kept, layout = self.streamed, self.checked.layout
        try:
            memory = self.free.pop()
        except IndexError:
            memory = StreamMemory(kept or self._streamed(), self.steps, self.batch, self.batch, layout.swaps)
        try:
            own = memory.states()
            if states is None:
                memory.home.zero_()
            else:
                for place, state in zip(own, layout.states(states), strict=True):
                    place.copy_(state)
            x = input.contiguous()
            output = x.new_empty((*x.shape[:-1], memory.weights.sizes[-1].outputs))
            memory.run(x.data_ptr(), output.data_ptr(), self.steps, self.batch)
            after = tuple([place.clone(memory_format=torch.contiguous_format) for place in own])
        finally:
            if kept is not None:
                self.free.append(memory)
        finals = layout.finals(after)
        return (None if self.is_cell else output), finals
