"""A plan for cells that train on the CPU: one step, its derivative one node of autograd's graph."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
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
from fastrnn.cells.contract import Run
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
        cell = checked.configuration.cell
        self.cell_name, self.adds, self.batched = cell.name, cell.adds_shares, checked.layout.batched
        self.states = len(cell.states)
        (self.weights,) = checked.weights
        hidden = self.weights[0].shape[0] // len(cell.x_gates)
        self.of_x, self.of_u = _columns(cell.x_runs, hidden), _columns(cell.u_runs, hidden)

    def run(
        self, input: Tensor, states: States | None, lengths: Lengths | None, resets: Tensor | None
    ) -> Results | None:
        """As `Plan.run`."""
        if any_freed(input, *(states or ())):
            return None
        states = self.kept_zeros(input) if states is None else states
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
            self.sums[task] = _Sums(needed)
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


class _Sums:
    """The gradients of a loop's weights in one backward, as far as it has come."""

    def __init__(self, needed: list[bool]) -> None:
        self.needed = needed
        self.gradients: list[Tensor | None] = []
        self.rows: list[_Rows] = []
        self.versions: list[int] = []
        self.bytes = 0

    def add(self, rows: _Rows) -> None:
        """Rows of a further step, whose products are computed once there are enough of them."""
        self.rows.append(rows)
        self.versions += rows.x._version, rows.h._version
        self.bytes += sum([tensor.nbytes for tensor in rows])
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
        dgx, dgh, x, h = zip(*self.rows, strict=True)
        d_input = _joined(dgx)
        together = _Rows(d_input, d_input if dgx[0] is dgh[0] else _joined(dgh), _joined(x), _joined(h))
        self.rows, self.versions, self.bytes = [], [], 0
        found = _weight_gradients(together, self.needed)
        pairs = zip(self.gradients or [None] * len(found), found, strict=True)
        self.gradients = [one if sum_ is None or one is None else sum_ + one for sum_, one in pairs]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _is_compiled_autograd() -> bool:
    """Whether the graph of gradients is being compiled, by whom steps that give no gradient are not understood."""
    compiler = sys.modules.get("torch._dynamo.compiled_autograd")
    return compiler is not None and bool(compiler.in_compiled_autograd_region)


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
        if all(grad is None for grad in grads):
            return (None,) * (2 + len(tensors))
        again = (
            torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0 or any(map(ops.is_batched, grads))
        )
        read = [x, *tensors, after, saved, *(() if again else grads)]
        if any_freed(*[tensor for tensor in read if tensor is not None]):
            raise checks.not_allocated(f"{plan.cell_name}: what backward reads")
        if again:
            return None, *_differentiable(plan.cell_name, x, states, weights, grads)
        # Their memory is read as it lies there.
        grads = tuple([grad if grad is None else grad.resolve_neg() for grad in grads])
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
    blocks, d_before = step.backward(plan.cell_name, states[-1].contiguous(), after, saved, grads)
    dgx = dgh = blocks
    if not plan.adds:
        dgx, dgh = _taken(blocks, plan.of_x), _taken(blocks, plan.of_u)
    if need_h:
        d_before[0].addmm_(dgh, w_hh)
    found: list[Tensor | None] = [dgx.mm(w_ih) if need_x else None, *d_before]
    if any(need_weights):
        rows = _Rows(dgx, dgh, x, states[0])
        if _is_compiled_autograd():
            return found + _weight_gradients(rows, need_weights)
        sums: _Sums = ctx.loop.of_this_backward(need_weights)
        sums.add(rows)
        if ctx.is_first:
            return found + sums.all()
    return found + [None] * len(weights)


def _weight_gradients(rows: _Rows, needed: list[bool]) -> list[Tensor | None]:
    need_w_ih, need_w_hh, *need_biases = needed
    found: list[Tensor | None] = [
        rows.dgx.t().mm(rows.x) if need_w_ih else None,
        rows.dgh.t().mm(rows.h) if need_w_hh else None,
    ]
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
