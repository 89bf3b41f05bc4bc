"""How a call is computed whose arguments have been checked: a class for each kind of plan.

A plan computes the call that it was bound for, and every later one of its signature (`memory.py` says which are).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastrnn import backends, ops, transforms
from fastrnn.backends import aten, products
from fastrnn.backends.layer import Forward, Layer, Outline
from fastrnn.backends.stack import Stack
from fastrnn.binding.checked import Checked
from fastrnn.binding.layouts import States
from fastrnn.gradients import needs_gradients
from fastrnn.lengths import Lengths, in_range
from fastrnn.watched_weights import any_freed

Results = tuple[Any, ...]
"""The output as the input was laid out, None of a cell; the final states; if asked for, the states of all steps."""
Watch = Callable[[int, Layer, Forward], None]
"""Is told, while a stack of layers runs, each layer's number, arguments and results, all states' histories included."""


class Plan:
    """The base of all kinds."""

    lays_out_weights: bool = False
    """whether `keep_weights` is of use"""

    def __init__(self, checked: Checked) -> None:
        self.checked = checked
        self._zeros: States | None = None

    def run(
        self,
        input: Tensor,
        states: States | None,
        lengths: Lengths | None,
        resets: Tensor | None,
        inputs: Sequence[Tensor] = (),
    ) -> Results | None:
        """The results of a call of the plan's signature; None where an argument has no memory."""
        masks = [mask for mask in (lengths, resets) if isinstance(mask, Tensor)]
        if any_freed(input, *(states or ()), *masks, *inputs):
            return None
        states = self.kept_zeros(input) if states is None and input.is_cpu else states
        return self.results(self.checked.laid_out(input, states, lengths, resets, inputs))

    def kept_zeros(self, input: Tensor) -> States:
        """What a call without states begins with, on the CPU; read only.

        On a GPU another stream, or a graph that is captured, must not depend on this memory.
        """
        if self._zeros is None:
            self._zeros = self.checked.layout.finals(self.checked.zeros(input))
        return self._zeros

    def results(self, stack: Stack) -> Results:
        """The results of such a call once it is laid out."""
        output, finals = self.compute(stack)
        layout = self.checked.layout
        return None if self.checked.configuration.is_cell else layout.output(output), layout.finals(finals)

    def compute(self, stack: Stack) -> tuple[Tensor, States]:
        """The last layer's output (T, B, directions·P or directions·H), or packed as `Stack.packed`, and the final
        states as `Stack.states0`."""
        raise NotImplementedError

    def served_by(self, stack: Stack) -> list[str]:
        """The backend of each layer.

        Raises:
            CannotServe: the one that was asked for cannot serve one of them.
        """
        raise NotImplementedError

    def keep_weights(self) -> None:
        """Lays the weights out as they are now, for all calls of the signature."""


class Torch(Plan):
    """By torch's own kernels."""

    def compute(self, stack: Stack) -> tuple[Tensor, States]:
        """As `Plan.compute`."""
        return aten.run(stack)

    def served_by(self, stack: Stack) -> list[str]:
        """As `Plan.served_by`."""
        return ["aten"] * stack.num_layers


class TorchStep(Torch):
    """A cell's step by torch's kernel on the CPU: a loop of steps is written with nothing else between them."""

    def run(
        self,
        input: Tensor,
        states: States | None,
        lengths: Lengths | None,
        resets: Tensor | None,
        inputs: Sequence[Tensor] = (),
    ) -> Results | None:
        """As `Plan.run`."""
        checked = self.checked
        if checked.dtype is not None or input.dim() != 2:
            return super().run(input, states, lengths, resets)
        if any_freed(input, *(states or ())):
            return None
        before = self.kept_zeros(input) if states is None else states
        return None, aten.step(checked.configuration.cell_name, input, before, checked.weights[0])

    def results(self, stack: Stack) -> Results:
        """As `Plan.results`."""
        after = aten.step(stack.cell_name, stack.x[0], [state[0] for state in stack.states0], stack.weights[0])
        return None, after if self.checked.layout.batched else tuple(state.squeeze(0) for state in after)


class Layers(Plan):
    """Layer by layer."""

    def __init__(self, checked: Checked, watch: Watch | None = None) -> None:
        super().__init__(checked)
        self.watch = watch
        self.history = watch is not None or checked.return_states
        self.drops = checked.configuration.dropout and checked.configuration.training
        self.backend = "auto" if watch is not None and checked.backend == "aten" else checked.backend
        """torch's kernels cannot tell of every layer"""

    def results(self, stack: Stack) -> Results:
        """As `Plan.results`."""
        if not self.checked.return_states:
            return super().results(stack)
        histories: list[list[Tensor]] = []
        output, finals = self._compute(stack, histories)
        layout = self.checked.layout
        states = tuple(layout.history(history) for history in _states(stack, histories))
        return layout.output(output), layout.finals(finals), states

    def compute(self, stack: Stack) -> tuple[Tensor, States]:
        """As `Plan.compute`."""
        return self._compute(stack, None)

    def _compute(self, stack: Stack, histories: list[list[Tensor]] | None) -> tuple[Tensor, States]:
        if stack.recurrent_mask is not None:
            rate = self.checked.configuration.recurrent_dropout
            stack = replace(stack, recurrent_mask=self.checked.layout.recurrent_mask(stack.recurrent_mask, rate))
        layer, last, finals = stack.layer(0, stack.x), stack.num_layers - 1, []
        for index in range(last + 1):
            result = self.layer(index, layer)
            finals.append(result.finals)
            if histories is not None:
                histories.append(result.states)
            if self.watch is not None:
                self.watch(index, layer, result)
            if index < last:
                below = result.states[0]
                layer = stack.layer(index + 1, self.checked.layout.dropped(below) if self.drops else below)
        if last == 0:
            return result.states[0], tuple(result.finals)
        return result.states[0], tuple(torch.cat(parts) for parts in zip(*finals, strict=True))

    def layer(self, index: int, layer: Layer) -> Forward:
        """One layer's results, with gradients where any are asked for."""
        raise NotImplementedError

    def served_by(self, stack: Stack) -> list[str]:
        """As `Plan.served_by`."""
        x, (steps, batch, _) = stack.x, stack.x.shape
        above = x.new_empty(1).expand(steps, batch, stack.directions * stack.states0[0].shape[-1])  # without memory
        inputs = [x, *[above] * (stack.num_layers - 1)]
        return [backends.operator_backend(self.backend, stack.layer(k, one)) for k, one in enumerate(inputs)]


class ByOperators(Layers):
    """Through the dispatcher, for who must see operators: compilers, tracers, modes, the profiler."""

    def layer(self, index: int, layer: Layer) -> Forward:
        """As `Layers.layer`."""
        kept, recompute = needs_gradients(*layer.tensors()), self.checked.configuration.recompute
        return ops.forward(layer, history=self.history or kept, gates=kept and not recompute, backend=self.backend)


class Transformed(Layers):
    """Under torch.func's transforms, and with dual numbers."""

    def layer(self, index: int, layer: Layer) -> Forward:
        """As `Layers.layer`."""
        recompute = self.checked.configuration.recompute
        return transforms.forward(layer, history=self.history, recompute=recompute, backend=self.backend)


class Bound(Layers):
    """By backends, which are bound to each layer's signature and weights when they are first called."""

    def __init__(self, checked: Checked, watch: Watch | None = None) -> None:
        super().__init__(checked, watch)
        self.bound: dict[tuple[int, bool], tuple[Callable[[Layer], Forward], Outline]] = {}
        """for each layer's number, with and without gradients: what is frozen may change between calls"""

    def _compute(self, stack: Stack, histories: list[list[Tensor]] | None) -> tuple[Tensor, States]:
        if stack.lengths is not None and stack.packed is None:
            stack = replace(stack, lengths=in_range(stack.cell.name, stack.lengths, stack.x.shape[0]))
        return super()._compute(stack, histories)

    def layer(self, index: int, layer: Layer) -> Forward:
        """As `Layers.layer`."""
        tensors = layer.tensors()
        kept = needs_gradients(*tensors)
        history, gates = self.history or kept, kept and not self.checked.configuration.recompute
        known = self.bound.get((index, kept))
        if known is None:
            bound = backends.bind(self.backend, layer, history=history, gates=gates)
            if self.checked.dtype is not None:
                bound = partial(_without_autocast, bound)
            known = self.bound[index, kept] = bound, layer.parts()[0]
        bound, outline = known
        if kept:
            run = partial(bound, layer)
            return ops.recorded(outline, tensors, run, history=history, gates=gates, backend=self.backend)
        return bound(layer)


def _without_autocast(bound: Callable[[Layer], Forward], layer: Layer) -> Forward:
    """Autocast has been applied: what a backend computes in is its own affair."""
    with torch.autocast(layer.x.device.type, enabled=False):
        return bound(layer)


def _states(stack: Stack, histories: Sequence[Sequence[Tensor]]) -> States:
    """The states of every step, (layers·directions, T, B, F) each in the call's dtype, from `Forward.states` of each
    layer; zero at t >= length.
    """
    live = products.live_steps(stack.layer(0, stack.x))

    def of_layer(history: Tensor) -> Tensor:
        if live is not None:
            history = torch.where(live[..., None], history, 0)
        by_direction = torch.unflatten(history.to(stack.x.dtype), -1, (stack.directions, -1))
        return by_direction.permute(2, 0, 1, 3)

    # A single layer's too: `cat` copies, so that no result shares memory with the output.
    return tuple(torch.cat([of_layer(history) for history in of_state]) for of_state in zip(*histories, strict=True))
