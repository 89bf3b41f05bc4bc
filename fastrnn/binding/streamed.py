"""A plan for few sequences on the CPU, without gradients, whose weights are laid out once: by the kernels of streams.

A whole stack is one call of a kernel, by one thread. With weights in fewer bits it serves all such calls; in float32
those in which other threads would have little to share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn.backends.numba.arguments import FIELDS
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
LEAST = 1_000_000
"""Multiplications of a call in float32, of which fewer take less time than a kernel saves."""
SHARED = 6_000_000
"""Multiplications with the input that several threads might share, up to which one does them as soon."""
TEAM = 50_000
"""Multiplications of a step with the state from which on threads share those of one sequence."""
_FIELDS = FIELDS["stream_float32"]
_X, _YS, _STEPS, _ROWS, _H_FROM, _H_TO, _H_ROW, _OTHERS_FROM, _OTHERS_TO, _OTHERS_ROW, _OTHERS_APART = (
    _FIELDS.index(name)
    for name in (
        *("x", "ys", "steps", "rows", "h_from", "h_to", "h_home_row"),
        *("others_from", "others_to", "others_home_row", "others_home_apart"),
    )
)


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
    of_x = sum(weights[0].numel() for weights in stack.weights)
    of_states = [weights[1].numel() for weights in stack.weights]
    if steps * batch * (of_x + sum(of_states)) < LEAST:
        return False
    return torch.get_num_threads() == 1 or (batch == 1 and max(of_states) < TEAM and steps * of_x <= SHARED)


class Streamed(launches.Launches):
    """Until weights are kept, float32 ones are laid out by `Launches`, others in each call."""

    def __init__(self, checked: Checked, stack: Stack) -> None:
        super().__init__(checked, stack)
        self.lays_out_weights = True
        self.format = checked.configuration.prepacked_weights
        self.streamed: StreamWeights | None = None
        self.free: list[StreamMemory] = []
        """for each thread that computes with them at the same time"""
        self.zeros = [torch.zeros_like(state, memory_format=torch.contiguous_format) for state in stack.states0]

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
        before = self.zeros if states is None else [state.contiguous() for state in states]
        after = [torch.empty_like(state) for state in self.zeros]
        x = input.contiguous()
        try:
            memory = self.free.pop()
        except IndexError:
            memory = self._memory(kept or self._streamed())
        output = x.new_empty((*x.shape[:-1], memory.weights.sizes[-1].outputs))
        try:
            self._step(memory, x.data_ptr(), output.data_ptr(), before, after)
        finally:
            if kept is not None:
                self.free.append(memory)
        return (None if self.is_cell else output), layout.finals(tuple(after))

    def _memory(self, weights: StreamWeights) -> StreamMemory:
        """With states that lie as the module's: (layers, B, P or H), the others one after another."""
        memory = StreamMemory(weights, self.steps, self.batch, self.batch, self.checked.layout.swaps)
        blocks, apart = memory.blocks, len(weights.sizes) * self.batch * self.hidden
        for at, sizes in zip(range(0, len(blocks), len(_FIELDS)), weights.sizes, strict=True):
            blocks[at + _H_ROW], blocks[at + _OTHERS_ROW] = sizes.outputs, sizes.hidden
            blocks[at + _OTHERS_APART] = apart
        return memory

    def _step(self, memory: StreamMemory, x: int, ys: int, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        blocks = memory.blocks
        blocks[_X], blocks[_YS], blocks[_STEPS], blocks[_ROWS] = x, ys, self.steps, self.batch
        several = len(after) > 2
        others = torch.stack((*before[1:],)) if several else before[-1]
        others_after = torch.empty_like(others) if several else after[-1]
        h, h_after, c, c_after = (t.data_ptr() for t in (before[0], after[0], others, others_after))
        h_size, c_size = (t.nbytes // len(memory.weights.sizes) for t in (after[0], after[-1]))
        for at in range(0, len(blocks), len(_FIELDS)):
            blocks[at + _H_FROM], blocks[at + _H_TO] = h, h_after
            blocks[at + _OTHERS_FROM], blocks[at + _OTHERS_TO] = c, c_after
            h, h_after, c, c_after = h + h_size, h_after + h_size, c + c_size, c_after + c_size
        memory.call()
        if several:
            for state, new in zip(after[1:], others_after, strict=True):
                state.copy_(new)
