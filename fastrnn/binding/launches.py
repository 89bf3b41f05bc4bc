"""A plan for the CPU, without gradients: from addresses straight to launches of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from math import prod

import torch
from torch import Tensor

from fastrnn.backends.addresses import address
from fastrnn.backends.numba import layer_forward, unpacked
from fastrnn.backends.numba.other_states import Place, place
from fastrnn.backends.numba.tensors import side_by_side
from fastrnn.backends.stack import Stack
from fastrnn.binding.checked import Checked
from fastrnn.binding.layouts import PackedLayout, States
from fastrnn.binding.plans import Plan, Results
from fastrnn.cells.weights import parted
from fastrnn.lengths import Lengths, in_range
from fastrnn.watched_weights import any_freed, is_freed

SMALL = 1 << 14
"""Elements of an output of which a tensor like it is kept, to make others by."""


def serves(checked: Checked, stack: Stack) -> bool:
    """Whether nothing is to be kept but the output and the final states, and all lies where kernels can read it."""
    return (
        is_plain(checked, stack)
        and stack.x.dtype in unpacked.DTYPES
        and not stack.projected  # whose states are of two sizes
        and stack.x.stride(2) == 1
        and all(state.is_contiguous() for state in stack.states0)
        and all(tensor.is_contiguous() for tensors in stack.weights for tensor in tensors)
    )


def is_plain(checked: Checked, stack: Stack) -> bool:
    """Whether nothing is asked for but the output and the final states of a padded batch, and nothing is drawn."""
    configuration = checked.configuration
    return (
        checked.dtype is None
        and not checked.return_states
        and not isinstance(checked.layout, PackedLayout)
        and not (configuration.dropout and configuration.training and stack.num_layers > 1)
        and stack.recurrent_mask is None
        and stack.x.numel() > 0
    )


class Launches(Plan):
    """Each layer a launch whose memory is filled in but for addresses."""

    def __init__(self, checked: Checked, stack: Stack) -> None:
        super().__init__(checked)
        x, layout, self.lays_out_weights = stack.x, checked.layout, checked.configuration.prepacked
        self.steps, self.batch, inputs = x.shape
        self.directions, self.hidden = stack.directions, stack.hidden_size
        self.cell, self.states = stack.cell, len(stack.cell.states)
        width = self.directions * self.hidden
        above = [(self.steps, self.batch, width)] * (stack.num_layers - 1)
        self.x_shapes = [(self.steps, self.batch, inputs), *above]
        self.strides = [(x.stride(0), x.stride(1)), *[(self.batch * width, width)] * len(above)]
        self.dense = x.is_contiguous()
        zeros = torch.zeros((len(stack.weights), self.batch, self.hidden), dtype=x.dtype, device=x.device)
        (self.like_state,) = layout.finals((zeros,))
        self.bytes = self.batch * self.hidden * x.itemsize
        self.h_bytes = self.c_bytes = self.directions * self.bytes
        """between what launches take of one layer and of the next: of h, and of all other states"""
        self.zeros_place: Place | None = None
        if self.states > 2:
            self.zeros_place = self._place([zeros] * self.states)
            self.c_bytes = self.directions * self.zeros_place.apart
        self.inputs_bytes = self.steps * self.h_bytes * len(self.cell.inputs)
        self.output_shape = (self.steps, self.batch, width) if layout.batched else (self.steps, width)
        self.like_output = self.like_state.new_empty(self.output_shape) if prod(self.output_shape) <= SMALL else None
        self.masked = stack.lengths is not None or stack.resets is not None
        # In a single step a layer's output is its h, but where there was no step.
        self.h_is_output = self.steps == 1 and self.directions == 1 and not self.masked
        self.is_cell, self.swaps = checked.configuration.is_cell, layout.swaps
        self.launches: list[tuple[Callable[..., None], int, int]] = []
        """of each layer, its launch's `run` and the distances between steps and rows of its input"""

    def _launches(self, keep_weights: bool) -> list[tuple[Callable[..., None], int, int]]:
        groups, key = self.checked.weights, self.cell.key
        made: list[tuple[Callable[..., None], int, int]] = []
        for index, x_shape in enumerate(self.x_shapes):
            weights = groups[index * self.directions : (index + 1) * self.directions]
            w_ih, w_hh, *lists = zip(*[parted(self.cell, each) for each in weights], strict=True)
            biases, _, parameters = ([*chain(*each)] for each in lists)
            rows = self.steps * self.batch
            few = rows <= unpacked.KEPT_ROWS if keep_weights else unpacked.pays(self.steps, self.batch, self.hidden)
            one_way = self.directions == 1 and unpacked.holds(w_hh[0])
            if few and one_way and not self.masked and not self.cell.over_units and (self.dense or index):
                reading = unpacked.unpacked_launch(key, x_shape, w_ih[0], w_hh[0], biases, parameters)
                made.append((reading.run, *self.strides[index]))
                continue
            by_rows = [w.flatten(0, -2) for w in w_hh]
            laying_out = layer_forward.forward_launch(key, x_shape, w_ih, by_rows, biases, (), False)
            if keep_weights:
                laying_out.keep_weights()
            run = partial(_run_with, laying_out.run, parameters) if parameters else laying_out.run
            made.append((run, *self.strides[index]))
        return made

    def served_by(self, stack: Stack) -> list[str]:
        """As `Plan.served_by`."""
        return ["numba"] * stack.num_layers

    def keep_weights(self) -> None:
        """As `Plan.keep_weights`."""
        self.launches = self._launches(keep_weights=True)

    def run(
        self,
        input: Tensor,
        states: States | None,
        lengths: Lengths | None,
        resets: Tensor | None,
        inputs: Sequence[Tensor] = (),
    ) -> Results | None:
        """As `Plan.run`."""
        others = self.zeros_place
        try:
            x = input.data_ptr()
            if states is None:
                h0 = c0 = self.like_state.data_ptr()
                freed = is_freed(input, x)
            else:
                h0, c0 = states[0].data_ptr(), states[-1].data_ptr()
                freed = is_freed(input, x) or is_freed(states[0], h0) or is_freed(states[-1], c0)
        except RuntimeError:  # what a transform of torch.func left behind
            return None
        if freed or (inputs and any_freed(*inputs)):
            return None
        if others is not None:
            if states is not None:
                if any_freed(*states):
                    return None
                others = self._place(states)
            c0 = others.address
        of_steps = None
        if inputs:
            of_steps = side_by_side(self.checked.step_inputs(inputs, self.x_shapes[0]))
        if not self.masked:
            return self._start(x, h0, c0, of_steps)
        layout = self.checked.layout
        for mask in (lengths, resets):
            if isinstance(mask, Tensor) and is_freed(mask, mask.data_ptr()):
                return None
        ready_resets = layout.resets(resets, input)
        ready_lengths = layout.lengths(lengths, layout.x(input))
        return self._masked(x, h0, c0, of_steps, ready_lengths, ready_resets)

    def results(self, stack: Stack) -> Results:
        """As `Plan.results`."""
        self.launches = self.launches or self._launches(keep_weights=False)
        x, states, others = stack.x, stack.states0, None
        c0 = states[-1].data_ptr()
        if self.zeros_place is not None:
            others = self._place(states)
            c0 = others.address
        places = x.data_ptr(), states[0].data_ptr(), c0, side_by_side(stack.inputs)
        return self._masked(*places, stack.lengths, stack.resets) if self.masked else self._start(*places)

    def _place(self, states: Sequence[Tensor]) -> Place:
        """Of the states but h, for each layer and direction."""
        return place(states[1:], len(self.checked.weights), self.bytes)

    def _masked(
        self, x: int, h0: int, c0: int, inputs: Tensor | None, lengths: Tensor | None, resets: Tensor | None
    ) -> Results:
        places = [0, 0]
        if lengths is not None:
            lengths = in_range(self.cell.name, lengths, self.steps).contiguous()
            places[0] = lengths.data_ptr()
        if resets is not None:
            resets = resets.contiguous()
            places[1] = resets.data_ptr()
        return self._start(x, h0, c0, inputs, 0, 0, *places)

    def _start(self, x: int, h0: int, c0: int, inputs: Tensor | None, *optional: int) -> Results:
        """`inputs` (layers·directions, T, B, N·H) are those of the steps; `optional` a launch's last arguments, none
        where there are no masks."""
        after = tuple([torch.empty_like(self.like_state) for _ in range(self.states)])
        h, c, others = after[0].data_ptr(), after[-1].data_ptr(), None
        if self.zeros_place is not None:
            others = self._place(after)
            c = others.address
        of_steps = {} if inputs is None else {"inputs": inputs.data_ptr()}
        if self.is_cell:
            one, x_step, x_row = self.launches[0]
            one(x, x_step, x_row, h0, c0, h, h, c, **of_steps)
            return None, after
        output, last, h_size, c_size = None, self.launches[-1], self.h_bytes, self.c_bytes
        for layer in self.launches:
            one, x_step, x_row = layer
            below = output  # which this layer reads
            output = None if self.h_is_output and layer is not last else self._new_output()
            ys = h if output is None else output.data_ptr()
            one(x, x_step, x_row, h0, c0, ys, h, c, *optional, **of_steps)
            x, h0, c0, h, c = ys, h0 + h_size, c0 + c_size, h + h_size, c + c_size
            if of_steps:
                of_steps["inputs"] += self.inputs_bytes
        del below
        return output.transpose(0, 1) if self.swaps else output, after  # type: ignore[union-attr]

    def _new_output(self) -> Tensor:
        if self.like_output is None:
            return self.like_state.new_empty(self.output_shape)
        return torch.empty_like(self.like_output)  # half a microsecond sooner


def _run_with(run: Callable[..., None], parameters: Sequence[Tensor], *places: int, **named: int) -> None:
    """A launch of these parameters, (H,) each, direction by direction, as they are now."""
    rows = side_by_side(parameters)
    run(*places, parameters=address(rows), **named)
