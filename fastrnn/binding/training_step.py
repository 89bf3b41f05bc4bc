"""A plan for cells that train on the CPU: one step, its derivative one node of autograd's graph."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn import checks, hints, ops
from fastrnn.backends import outside, products
from fastrnn.backends.layer import Gradients, Layer, grouped
from fastrnn.backends.numba import step, unpacked
from fastrnn.backends.stack import Stack
from fastrnn.binding.checked import Checked
from fastrnn.binding.layouts import States
from fastrnn.binding.plans import Plan, Results
from fastrnn.cells import Cell
from fastrnn.cells.contract import Run
from fastrnn.cells.weights import parted
from fastrnn.lengths import Lengths
from fastrnn.watched_weights import any_freed

MOST_BYTES = 8 << 20
"""Of what steps leave for products to come: enough rows for a product to be fast, and little beside the graph."""


def serves(checked: Checked, stack: Stack) -> bool:
    """Whether it is a cell's step with gradients, in a dtype that is computed in."""
    return checked.configuration.is_cell and checked.dtype is None and stack.x.dtype in unpacked.DTYPES


class TrainingStep(Plan):
    """torch's products, and one launch of numba's for the rest; see `backends.numba.step`."""

    def __init__(self, checked: Checked) -> None:
        super().__init__(checked)
        self.cell = cell = checked.configuration.cell
        self.adds, self.batched = cell.adds_shares, checked.layout.batched
        self.are_all = self.adds and len(cell.blocks) == len(cell.x_gates)
        """whether all blocks are gradients of both products"""
        self.before = [state in cell.reads_before for state in cell.states]
        self.after = [state in cell.reads_after for state in cell.states]
        """which states the derivative looks at"""
        (self.weights,) = checked.weights
        self.hidden = self.weights[0].shape[0] // len(cell.x_gates)
        self.of_x, self.of_u = _columns(cell.x_runs, self.hidden), _columns(cell.u_runs, self.hidden)
        w_hh = self.weights[1]
        self.heads = w_hh.shape[0] if w_hh.dim() == 3 and cell.u_gates else 0
        """of a recurrent weight that is one matrix for each head, else 0"""
        self.has_more = len(cell.parameters) + len(cell.inputs) > 0
        """whether there are gradients outside the products and the states"""
        self.parameters_at = len(self.weights) - len(cell.parameters)
        """where the cell's own begin among the weights"""
        self.inputs_at = len(cell.states) + len(self.weights)
        self.after_at = self.inputs_at + len(cell.inputs)
        """where these begin among what a step keeps for backward"""

    def run(
        self,
        input: Tensor,
        states: States | None,
        lengths: Lengths | None,
        resets: Tensor | None,
        inputs: Sequence[Tensor] = (),
    ) -> Results | None:
        """As `Plan.run`."""
        if any_freed(input, *(states or ()), *inputs):
            return None
        states = self.kept_zeros(input) if states is None else states
        if inputs:
            rows = input.shape[0] if self.batched else 1
            inputs = [value.expand(rows, self.hidden) for value in inputs]
        if self.batched:
            return None, self._step(input, states, inputs)
        return self._unbatched(input.unsqueeze(0), tuple(state.unsqueeze(0) for state in states), inputs)

    def results(self, stack: Stack) -> Results:
        """As `Plan.results`."""
        x, states = stack.x[0], tuple(state[0] for state in stack.states0)
        inputs = [value[0, 0] for value in stack.inputs]
        return (None, self._step(x, states, inputs)) if self.batched else self._unbatched(x, states, inputs)

    def _unbatched(self, x: Tensor, states: States, inputs: Sequence[Tensor]) -> Results:
        return None, tuple(state.squeeze(0) for state in self._step(x, states, inputs))

    def _step(self, x: Tensor, states: States, inputs: Sequence[Tensor]) -> States:
        return _Step.apply(self, x, *states, *self.weights, *inputs)  # type: ignore[no-any-return, no-untyped-call]

    def parted(self, values: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Values for the states, the weights and the inputs."""
        states, end = len(self.before), self.inputs_at
        return values[:states], values[states:end], values[end:]

    def served_by(self, stack: Stack) -> list[str]:
        """As `Plan.served_by`."""
        return ["numba"]


def _columns(runs: Sequence[Run], hidden: int) -> list[tuple[slice, slice]]:
    """Where the gradients of a product lie among a cell's blocks, (B, W·H), in the order of its gates."""
    in_order = sorted(runs, key=lambda run: run.gate)
    return [(slice(None), run.columns(hidden)) for run in in_order] or [(slice(None), slice(0))]


def _taken(blocks: Tensor, columns: Sequence[tuple[slice, slice]]) -> Tensor:
    if len(columns) == 1:
        return blocks[columns[0]]
    return torch.cat([blocks[own] for own in columns], 1)


class _Loop:
    """Steps by one plan, each of which begins with states that another one left, but for the first.

    Backward reaches the first one after all others, since it needs what they give, so that it can give the weights'
    gradients of all: few products over many steps' rows instead of a product and a sum for each.
    """

    __slots__ = ("asked", "plan", "sums")

    def __init__(self, plan: TrainingStep, asked: list[bool]) -> None:
        self.plan, self.asked = plan, asked
        """for which of the plan's weights gradients are asked: those of all steps alike"""
        self.sums: dict[int, _Sums] = {}
        """of each backward that is under way: there may be several, of threads or within each other"""

    def of_this_backward(self, needed: list[bool]) -> _Sums:
        """What the steps have left so far; it goes when the backward ends, wherever that is."""
        task = torch._C._current_graph_task_id()
        if task not in self.sums:
            self.sums[task] = _Sums(needed, self.plan.heads)
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(partial(self.sums.pop, task, None))
        return self.sums[task]


class _Rows(NamedTuple):
    """What gradients of weights are made of."""

    dgx: Tensor
    """(B, Gx·H)"""
    dgh: Tensor
    """(B, Gu·H), `dgx` itself where the cell only adds both products"""
    x: Tensor
    h: Tensor
    """before the step"""
    parameters: Sequence[Tensor]
    """(B, H): of each of the cell's parameters, its gradient's terms"""


class _Sums:
    """The gradients of a loop's weights in one backward, as far as it has come."""

    def __init__(self, needed: list[bool], heads: int) -> None:
        self.needed, self.heads = needed, heads
        self.gradients: list[Tensor | None] = []
        self.rows: list[_Rows] = []
        self.versions: list[int] = []
        self.bytes = 0

    def add(self, rows: _Rows) -> None:
        """Rows of a further step, whose products are computed once there are enough of them."""
        self.rows.append(rows)
        self.versions += rows.x._version, rows.h._version
        self.bytes += sum([tensor.nbytes for tensor in (*rows[:4], *rows.parameters)])
        if self.bytes >= MOST_BYTES:
            self._multiply()

    def all(self) -> list[Tensor | None]:
        """The gradients of all steps that were added, None where there are none."""
        self._multiply()
        return self.gradients

    def _multiply(self) -> None:
        """Adds the products of the rows that are there."""
        if not self.rows:
            return
        if self.versions != [version for rows in self.rows for version in (rows.x._version, rows.h._version)]:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation, "
                "while backward was under way"
            )
        dgx, dgh, x, h, parameters = zip(*self.rows, strict=True)
        d_input, terms = _joined(dgx), [*map(_joined, zip(*parameters, strict=True))]
        together = _Rows(d_input, d_input if dgx[0] is dgh[0] else _joined(dgh), _joined(x), _joined(h), terms)
        self.rows, self.versions, self.bytes = [], [], 0
        found = _weight_gradients(together, self.needed, self.heads)
        pairs = zip(self.gradients or [None] * len(found), found, strict=True)
        self.gradients = [one if sum_ is None or one is None else sum_ + one for sum_, one in pairs]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _is_compiled_autograd() -> bool:
    """Whether the graph of gradients is being compiled, by whom steps that give no gradient are not understood."""
    compiler = sys.modules.get("torch._dynamo.compiled_autograd")
    return compiler is not None and bool(compiler.in_compiled_autograd_region)


class _Step(torch.autograd.Function):
    """A cell's step under autograd: its states after the step, from x (B, I), the states (B, H), the weights, and the
    inputs of the step (B, H)."""

    @staticmethod
    def forward(ctx: Any, plan: TrainingStep, x: Tensor, *tensors: Tensor) -> States:
        before = tensors[0].grad_fn
        given, weights, inputs = plan.parted(tensors)
        asked = [weight.requires_grad for weight in weights]
        loop = getattr(before, "loop", None) if type(before) is _Step._backward_cls else None
        ctx.is_first = loop is None or loop.plan is not plan or loop.asked != asked
        ctx.loop = _Loop(plan, asked) if loop is None or ctx.is_first else loop
        states = tuple([state.contiguous() for state in given])
        after, saved = step.forward(plan.cell.key, x, states, weights, inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *tensors, *compress(after, plan.after), saved)
        return after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, *kept = hints.saved_tensors(ctx)
        plan = ctx.loop.plan
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        again = (
            torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0 or any(map(ops.is_batched, grads))
        )
        read = [x, *kept, *(() if again else grads)]
        if any_freed(*[tensor for tensor in read if tensor is not None]):
            raise checks.not_allocated(f"{plan.cell.name}: what backward reads")
        given, weights, inputs = plan.parted(kept[: plan.after_at])
        of_step = _Kept(given, weights, inputs, kept[plan.after_at : -1], kept[-1])
        if again:
            return None, *_differentiable(plan.cell, x, of_step, grads)
        # Their memory is read as it lies there.
        grads = tuple([grad if grad is None else grad.resolve_neg() for grad in grads])
        with ops.autocast_off(x):
            return None, *_gradients(ctx, plan, x, of_step, grads)


class _Kept(NamedTuple):
    """What a step keeps for backward beside x."""

    states: list[Tensor]
    weights: list[Tensor]
    inputs: list[Tensor]
    after: list[Tensor]
    """of the states after the step those that the derivative looks at"""
    saved: Tensor | None


def _gradients(
    ctx: Any, plan: TrainingStep, x: Tensor, kept: _Kept, grads: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """Of x, the states, the weights and the inputs."""
    cell, states, weights, saved = plan.cell, kept.states, kept.weights, kept.saved
    _, need_x, *others = ctx.needs_input_grad
    (need_h, *_), need_weights, need_inputs = plan.parted(others)
    left = iter(kept.after)
    before = [state.contiguous() if read else None for state, read in zip(states, plan.before, strict=True)]
    after = [next(left) if read else None for read in plan.after]
    parameters = weights[plan.parameters_at :]
    like = states[0].contiguous()
    blocks, d_before = step.backward(cell.key, before, after, saved, grads, parameters, kept.inputs, like)
    dgx = dgh = blocks if plan.are_all else _taken(blocks, plan.of_x)
    if not plan.adds:
        dgh = _taken(blocks, plan.of_u)
    if need_h and cell.u_gates:
        if plan.heads:
            of_gates = dgh.unflatten(1, (-1, plan.hidden))
            d_before[0].add_(products.product_of_heads_backward(of_gates, weights[1]))
        else:
            d_before[0].addmm_(dgh, weights[1])
    found: list[Tensor | None] = [dgx.mm(weights[0]) if need_x else None, *d_before]
    named: dict[str, Tensor] = {}
    if plan.has_more and ((parameters and any(need_weights)) or any(need_inputs)):
        values = () if saved is None else saved.chunk(len(cell.saved), 1)
        named = outside.by_name(cell, blocks.chunk(len(cell.blocks), 1), values, before, after, parameters, kept.inputs)
    # Copies: a hook may change a gradient where it lies, and others are still to come from the blocks.
    d_inputs = [named[name].clone() if need else None for name, need in zip(cell.inputs, need_inputs, strict=True)]
    if any(need_weights):
        rows = _Rows(dgx, dgh, x, states[0], [named[name] for name in cell.parameters])
        if _is_compiled_autograd():
            return [*found, *_weight_gradients(rows, need_weights, plan.heads), *d_inputs]
        sums: _Sums = ctx.loop.of_this_backward(need_weights)
        sums.add(rows)
        if ctx.is_first:
            return [*found, *sums.all(), *d_inputs]
    return [*found, *[None] * len(weights), *d_inputs]


def _weight_gradients(rows: _Rows, needed: list[bool], heads: int) -> list[Tensor | None]:
    """In the order of the weights; `heads` as in the plan."""
    first = len(needed) - len(rows.parameters)
    need_w_ih, need_w_hh, *need_biases = needed[:first]
    found: list[Tensor | None] = [rows.dgx.t().mm(rows.x) if need_w_ih else None]
    if need_w_hh and heads:
        found.append(products.weights_of_heads(rows.dgh.unflatten(1, (-1, rows.h.shape[1])), rows.h, heads))
    else:
        found.append(rows.dgh.t().mm(rows.h) if need_w_hh else None)
    if any(need_biases):
        sums = rows.dgx.sum(0)
        found += [sums, sums if rows.dgh is rows.dgx else rows.dgh.sum(0)]
    found += [None] * (first - len(found))
    return found + [d.sum(0) if need else None for d, need in zip(rows.parameters, needed[first:], strict=True)]


def _differentiable(cell: Cell, x: Tensor, kept: _Kept, grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated or batched again, through the reference."""
    w_ih, w_hh, biases, _, parameters = parted(cell, kept.weights)
    layer = Layer(
        cell_name=cell.key,
        x=x.unsqueeze(0),
        w_ih=[w_ih],
        w_hh=[w_hh if w_hh.dim() == 3 else w_hh.unsqueeze(0)],
        biases=[*biases],
        extras=[],
        states0=[state.unsqueeze(0) for state in kept.states],
        lengths=None,
        resets=None,
        reverse=False,
        parameters=[*parameters],
        inputs=[value[None, None] for value in kept.inputs],
    )
    d_finals = [None if d is None else d.unsqueeze(0) for d in grads]
    with ops.autocast_off(x):
        found = ops.differentiable_gradients(layer, Gradients([None], d_finals), torch.is_grad_enabled())
    groups = (x,), (w_ih,), (w_hh,), biases, kept.states, layer.parameters, kept.inputs
    (d_x,), (d_w_ih,), (d_w_hh,), d_biases, d_states, d_parameters, d_inputs = grouped(found, map(len, groups))

    def shaped(found: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        return [d if d is None else d.reshape(one.shape) for d, one in zip(found, like, strict=True)]

    d_weights = [d_w_ih, *shaped([d_w_hh], [w_hh]), *d_biases, *d_parameters]
    return [*shaped([d_x], [x]), *shaped(d_states, kept.states), *d_weights, *shaped(d_inputs, kept.inputs)]
