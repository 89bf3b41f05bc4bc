"""One step of a cell with its gradients: torch's products, and between them one launch forward and one backward.

A loop of steps that is trained is written with cells. Weights cannot be laid out for a single step, so that products
are torch's; what its cells spend on some thirty small operations and their nodes in autograd's graph is one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn.backends import products
from fastrnn.backends.addresses import address
from fastrnn.backends.numba import launch
from fastrnn.backends.numba.arguments import Pointwise, PointwiseBackward
from fastrnn.backends.numba.cell_code import cell_code
from fastrnn.backends.numba.compile import kernel
from fastrnn.backends.numba.geometry import Geometry
from fastrnn.backends.numba.other_states import of_steps
from fastrnn.backends.numba.tensors import side_by_side
from fastrnn.cells.known import KNOWN

States = tuple[Tensor, ...]


def forward(
    cell_name: str, x: Tensor, states: States, weights: Sequence[Tensor], inputs: Sequence[Tensor] = ()
) -> tuple[States, Tensor | None]:
    """The states (B, H) after a step and what the cell saves (B, S·H), from x (B, I) and dense states (B, H).

    `weights` are weight_ih, weight_hh, the biases if any, and the cell's parameters; `inputs` (B, H) those of the step.
    """
    cell, h = KNOWN[cell_name], states[0]
    end = len(weights) - len(cell.parameters)
    own, (w_ih, w_hh, *biases) = weights[end:], weights[:end]  # a step has no projection
    b_ih, b_hh = biases or (None, None)
    gx, gh = F.linear(x, w_ih, b_ih), None
    if w_hh.dim() == 3 and cell.u_gates:
        gh = products.product_of_heads(h, w_hh, len(cell.u_gates)).flatten(1).contiguous()
        gh = gh if b_hh is None else gh.add_(b_hh)
    elif cell.u_gates:
        gh = F.linear(h, w_hh, b_hh)
    batch, hidden = h.shape
    after = tuple([torch.empty_like(h) for _ in states])
    saves = len(cell.saved)
    saved = h.new_empty((batch, saves * hidden)) if saves else None
    parameters, step_inputs = side_by_side(own), side_by_side(inputs)
    (c, c_new), _tables = of_steps(states, after)
    compiled = kernel(cell_name, "pointwise", h.dtype)
    kept = _scratch(cell_name, "step_kept", h, compiled.geometry)
    block = Pointwise(
        batch=batch,
        hidden=hidden,
        gx=gx.data_ptr(),
        gh=0 if gh is None else gh.data_ptr(),
        h=h.data_ptr(),
        c=c,
        parameters=0 if parameters is None else parameters.data_ptr(),
        inputs=0 if step_inputs is None else step_inputs.data_ptr(),
        h_new=after[0].data_ptr(),
        c_new=c_new,
        saved=0 if saved is None else saved.data_ptr(),
        kept=address(kept),
    )
    launch.alone(compiled.address, block)
    return after, saved


def _scratch(cell_name: str, count: str, like: Tensor, geometry: Geometry) -> Tensor | None:
    """Memory for what passes over a row keep, `CellKernel`'s `count` of vectors for each; None where there are none."""
    if not KNOWN[cell_name].over_units:
        return None
    vectors = getattr(cell_code(cell_name).kernel, count)
    return like.new_empty(vectors * geometry.padded(like.shape[1], 1))


def backward(
    cell_name: str,
    before: Sequence[Tensor | None],
    after: Sequence[Tensor | None],
    saved: Tensor | None,
    d_after: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
    like: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """dgates (B, W·H), and what reaches the states before the step directly, from what reaches those after it.

    `before` and `after` are the states, dense, where the derivative looks at them, else None; the others are those of
    `forward`, and `like` looks as dense states do.
    """
    batch, hidden = like.shape
    dense = [None if d is None else d.contiguous() for d in d_after]
    dgates = like.new_empty((batch, len(KNOWN[cell_name].blocks) * hidden))
    d_before = [torch.empty_like(like) for _ in d_after]
    of_units, step_inputs, dh = side_by_side(parameters), side_by_side(inputs), dense[0]
    (c_before, c_after, dc, dc0), _tables = of_steps(before, after, dense, d_before)
    compiled = kernel(cell_name, "pointwise_backward", like.dtype)
    kept = _scratch(cell_name, "derivative_kept", like, compiled.geometry)
    block = PointwiseBackward(
        batch=batch,
        hidden=hidden,
        saved=0 if saved is None else saved.data_ptr(),
        h_before=0 if before[0] is None else before[0].data_ptr(),
        c_before=c_before,
        h_after=0 if after[0] is None else after[0].data_ptr(),
        c_after=c_after,
        parameters=0 if of_units is None else of_units.data_ptr(),
        inputs=0 if step_inputs is None else step_inputs.data_ptr(),
        dh=0 if dh is None else dh.data_ptr(),
        dc=dc,
        dgates=dgates.data_ptr(),
        dh0=d_before[0].data_ptr(),
        dc0=dc0,
        kept=address(kept),
    )
    launch.alone(compiled.address, block)
    return dgates, d_before
