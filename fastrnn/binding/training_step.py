"""A plan for cells that train on the CPU: one step, its derivative one node of autograd's graph."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn import checks, ops
from fastrnn.backends.layer import Gradients, Layer
from fastrnn.backends.numba import step, unpacked
from fastrnn.backends.stack import Stack
from fastrnn.binding.checked import Checked
from fastrnn.binding.layouts import States
from fastrnn.binding.plans import Plan, Results
from fastrnn.lengths import Lengths
from fastrnn.watched_weights import any_freed


def serves(checked: Checked, stack: Stack) -> bool:
    """Whether it is a cell's step with gradients, in a dtype that is computed in."""
    return checked.configuration.one_step and checked.dtype is None and stack.x.dtype in unpacked.DTYPES


class TrainingStep(Plan):
    """torch's products, and one launch of numba's for the rest; see `backends.numba.step`."""

    def __init__(self, checked: Checked) -> None:
        super().__init__(checked)
        cell = checked.configuration.cell
        self.cell_name, self.adds, self.batched = cell.name, cell.adds_pre_activations, checked.layout.batched
        self.states = len(cell.states)
        (self.weights,) = checked.weights

    def run(
        self, input: Tensor, states: States | None, lengths: Lengths | None, resets: Tensor | None
    ) -> Results | None:
        """As `Plan.run`."""
        if any_freed(input, *(states or ())):
            return None
        if states is None:
            if self.zeros is None:
                self.zeros = self.checked.layout.finals(self.checked.zeros(input))
            states = self.zeros
        if self.batched:
            return None, self._step(input, states)
        return self._unbatched(input.unsqueeze(0), tuple(state.unsqueeze(0) for state in states))

    def results(self, stack: Stack) -> Results:
        """As `Plan.results`."""
        x, states = stack.x[0], tuple(state[0] for state in stack.states0)
        return (None, self._step(x, states)) if self.batched else self._unbatched(x, states)

    def _unbatched(self, x: Tensor, states: States) -> Results:
        return None, tuple(state.squeeze(0) for state in self._step(x, states))

    def _step(self, x: Tensor, states: States) -> States:
        return _Step.apply(self, x, *states, *self.weights)  # type: ignore[no-any-return, no-untyped-call]

    def served_by(self, stack: Stack) -> list[str]:
        """As `Plan.served_by`."""
        return ["numba"]


class _Loop:
    """Steps by one plan, each of which begins with states that another one left, but for the first.

    Backward reaches the first one after all others, since it needs what they give, so that it can give the weights'
    gradients of all: one product over all steps' rows instead of a product and a sum for each.
    """

    __slots__ = ("asked", "plan", "rows", "task")

    def __init__(self, plan: TrainingStep, asked: list[bool]) -> None:
        self.plan, self.asked, self.task = plan, asked, -1
        """for which of the plan's weights gradients are asked: those of all steps alike"""
        self.rows: list[_Rows] = []

    def add(self, rows: _Rows) -> None:
        """What a step leaves for the first one. A backward that was broken off leaves rows that belong to nobody."""
        task = torch._C._current_graph_task_id()
        if task != self.task:
            self.task, self.rows = task, []
        self.rows.append(rows)

    def take(self) -> _Rows:
        """The rows of all steps in this backward, one below the other."""
        rows, self.rows = self.rows, []
        if len(rows) == 1:
            return rows[0]
        dgx, dgh, x, h = zip(*rows, strict=True)
        d_input = torch.cat(dgx)
        return _Rows(d_input, d_input if dgx[0] is dgh[0] else torch.cat(dgh), torch.cat(x), torch.cat(h))


class _Rows(NamedTuple):
    """What gradients of weights are made of."""

    dgx: Tensor
    """(B, G·H)"""
    dgh: Tensor
    """as `dgx`, itself where the cell only adds both products"""
    x: Tensor
    h: Tensor
    """before the step"""


class _Step(torch.autograd.Function):
    """A cell's step under autograd: its states after the step, from x (B, I), the states (B, H), and the weights."""

    @staticmethod
    def forward(ctx: Any, plan: TrainingStep, x: Tensor, *tensors: Tensor) -> States:
        count, before = plan.states, tensors[0].grad_fn
        weights = tensors[count:]
        asked = [weight.requires_grad for weight in weights]
        loop = getattr(before, "loop", None) if type(before) is _Step._backward_cls else None
        ctx.is_first = loop is None or loop.plan is not plan or loop.asked != asked
        ctx.loop = _Loop(plan, asked) if loop is None or ctx.is_first else loop
        states = tuple([state.contiguous() for state in tensors[:count]])
        after, saved = step.forward(plan.cell_name, x, states, weights)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *tensors, after[-1], saved)
        return after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, *tensors, after, saved = ctx.saved_tensors
        plan = ctx.loop.plan
        states, weights = tensors[: plan.states], tensors[plan.states :]
        again = (
            torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0 or any(map(ops.is_batched, grads))
        )
        read = [x, *tensors, after, saved, *(() if again else grads)]
        if any_freed(*[tensor for tensor in read if tensor is not None]):
            raise checks.not_allocated(f"{plan.cell_name}: what backward reads")
        if again:
            return None, *_differentiable(plan.cell_name, x, states, weights, grads)
        with ops.autocast_off(x):
            return None, *_gradients(ctx, plan, x, states, weights, after, saved, grads)


def _gradients(
    ctx: Any,
    plan: TrainingStep,
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    after: Tensor,
    saved: Tensor | None,
    grads: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    _, need_x, need_h, *others = ctx.needs_input_grad
    need_weights = others[plan.states - 1 :]
    w_ih, w_hh = weights[:2]
    dgates, d_before = step.backward(plan.cell_name, states[-1].contiguous(), after, saved, grads)
    dgx = dgh = dgates
    if not plan.adds:
        hidden = after.shape[1]
        # The last gate of dgx comes first; see `gate_gradients`.
        dgx, dgh = torch.cat((dgates[:, hidden:-hidden], dgates[:, :hidden]), 1), dgates[:, hidden:]
    if need_h:
        d_before[0].addmm_(dgh, w_hh)
    found: list[Tensor | None] = [dgx.mm(w_ih) if need_x else None, *d_before]
    if any(need_weights):
        ctx.loop.add(_Rows(dgx, dgh, x, states[0]))
        if ctx.is_first:
            return found + _weight_gradients(ctx.loop.take(), need_weights)
    return found + [None] * len(weights)


def _weight_gradients(rows: _Rows, needed: list[bool]) -> list[Tensor | None]:
    need_w_ih, need_w_hh, *need_biases = needed
    found = [rows.dgx.t().mm(rows.x) if need_w_ih else None, rows.dgh.t().mm(rows.h) if need_w_hh else None]
    if any(need_biases):
        sums = rows.dgx.sum(0)
        found += [sums, sums if rows.dgh is rows.dgx else rows.dgh.sum(0)]
    return found + [None] * (len(needed) - len(found))


def _differentiable(
    cell_name: str, x: Tensor, states: list[Tensor], weights: list[Tensor], grads: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated or batched again, through the reference."""
    w_ih, w_hh, *biases = weights
    states0 = [state.unsqueeze(0) for state in states]
    layer = Layer(cell_name, x.unsqueeze(0), [w_ih], [w_hh.unsqueeze(0)], biases, [], states0, None, None, False)
    d_finals = [None if d is None else d.unsqueeze(0) for d in grads]
    with ops.autocast_off(x):
        found = ops.differentiable_gradients(layer, Gradients([None], d_finals), torch.is_grad_enabled())
    d_x, d_w_ih, d_w_hh, *rest = found
    d_biases, d_states0 = rest[: len(biases)], rest[len(biases) :]

    def first(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.squeeze(0)

    return [first(d_x), *map(first, d_states0), d_w_ih, first(d_w_hh), *d_biases]
