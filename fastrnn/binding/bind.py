"""`bind`: a call's arguments are checked, and how calls like it are computed is decided, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn.utils.rnn import PackedSequence

from fastrnn import flops, ops
from fastrnn.backends import aten_serves, operator_backend
from fastrnn.backends.stack import Stack
from fastrnn.binding import launches, streamed, training_step
from fastrnn.binding.checked import Checked, Weights, check
from fastrnn.binding.configuration import Configuration
from fastrnn.binding.plans import Bound, ByOperators, Plan, Results, Torch, TorchStep, Transformed, Watch
from fastrnn.gradients import is_transformed, needs_gradients
from fastrnn.lengths import Lengths


def bind(
    configuration: Configuration,
    weights: Weights,
    input: Tensor | PackedSequence,
    hx: Any = None,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
    watch: Watch | None = None,
    inputs: Sequence[Any] = (),
) -> tuple[Plan, Stack]:
    """The plan of calls like this one, and this one laid out: `plan.results(stack)` computes it.

    `inputs` are those of the steps that `Cell.inputs` names.

    Raises:
        ValueError, RuntimeError, TypeError: what is wrong with an argument; nothing has been computed then.
        CannotServe: the backend that was asked for cannot serve the call.
    """
    checked, stack = check(configuration, weights, input, hx, lengths, resets, return_states, inputs)
    return plan_of(checked, stack, watch), stack


def plan_of(checked: Checked, stack: Stack, watch: Watch | None = None) -> Plan:
    """How calls like a checked one are computed.

    On the CPU a plan of launches serves every cell, `Launches` without gradients and `TrainingStep` a cell's step with
    them; the modules of these say in `serves` what they leave to `Bound`. So goes, besides, whatever somebody watches
    and what the backend numba does not serve.

    Raises:
        CannotServe: torch's kernels were asked for and cannot serve the call.
    """
    if is_transformed():
        return Transformed(checked, watch)
    first, tensors = stack.layer(0, stack.x), stack.tensors()
    differentiable = needs_gradients(*tensors)
    if (
        (watch is None or checked.return_states)
        and aten_serves(checked.backend, stack, first, differentiable)
        and (checked.backend == "aten" or not flops.are_counted())
    ):
        return TorchStep(checked) if checked.configuration.is_cell and stack.x.is_cpu else Torch(checked)
    given = [*tensors, *[mask for mask in (stack.lengths, stack.resets) if mask is not None]]
    if ops.is_watched(given) or any(map(torch._C._functorch.is_functorch_wrapped_tensor, given)):
        return ByOperators(checked, watch)
    if watch is None and operator_backend(checked.backend, first) == "numba":
        if not differentiable and streamed.serves(checked, stack):
            return streamed.Streamed(checked, stack)
        if not differentiable and launches.serves(checked, stack):
            return launches.Launches(checked, stack)
        if differentiable and training_step.serves(checked, stack):
            return training_step.TrainingStep(checked)
    return Bound(checked, watch)


def results(configuration: Configuration, weights: Weights, input: Tensor | PackedSequence, *arguments: Any) -> Results:
    """Of a call that is bound and run once; arguments as those of `bind`."""
    if torch.compiler.is_compiling() and isinstance(input, PackedSequence) and input.sorted_indices is None:
        # Only the data tell how many sequences there are.
        return _outside_graphs(configuration, weights, input, *arguments)
    plan, stack = bind(configuration, weights, input, *arguments)
    return plan.results(stack)


_outside_graphs = _disable_dynamo(results)
"""What a compiler calls without looking into it."""
