"""One step of a cell with its gradients: torch's products, and between them one launch forward and one backward.

A loop of steps that is trained is written with cells. Weights cannot be laid out for a single step, so that products
are torch's; what its cells spend on some thirty small operations and their nodes in autograd's graph is one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn.backends.numba import launch
from fastrnn.backends.numba.arguments import Pointwise, PointwiseBackward
from fastrnn.backends.numba.compile import kernel
from fastrnn.cells.known import KNOWN

States = tuple[Tensor, ...]


def forward(cell_name: str, x: Tensor, states: States, weights: Sequence[Tensor]) -> tuple[States, Tensor | None]:
    """The states (B, H) after a step and what the cell saves (B, S·H), from x (B, I) and dense states (B, H).

    `weights` are weight_ih, weight_hh, and the biases if any.
    """
    h, c = states[0], states[-1]
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (None, None)
    gx, gh = F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh)
    batch, hidden = h.shape
    after = tuple([torch.empty_like(h) for _ in states])
    saves = len(KNOWN[cell_name].saved)
    saved = h.new_empty((batch, saves * hidden)) if saves else None
    block = Pointwise(
        batch=batch,
        hidden=hidden,
        gx=gx.data_ptr(),
        gh=gh.data_ptr(),
        h=h.data_ptr(),
        c=c.data_ptr(),
        h_new=after[0].data_ptr(),
        c_new=after[-1].data_ptr(),
        saved=0 if saved is None else saved.data_ptr(),
    )
    launch.alone(kernel(cell_name, "pointwise", h.dtype).address, block)
    return after, saved


def backward(
    cell_name: str, before: Tensor, after: Tensor, saved: Tensor | None, d_after: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor]]:
    """dgates (B, W·H), and what reaches the states before the step directly, from what reaches those after it.

    `before` and `after` are the last of the states.
    """
    batch, hidden = before.shape
    dense = [None if d is None else d.contiguous() for d in d_after]
    dgates = before.new_empty((batch, len(KNOWN[cell_name].blocks) * hidden))
    d_before = [torch.empty_like(before) for _ in d_after]
    dh, dc = dense[0], dense[-1]
    block = PointwiseBackward(
        batch=batch,
        hidden=hidden,
        saved=0 if saved is None else saved.data_ptr(),
        before=before.data_ptr(),
        after=after.data_ptr(),
        dh=0 if dh is None else dh.data_ptr(),
        dc=0 if dc is None else dc.data_ptr(),
        dgates=dgates.data_ptr(),
        dh0=d_before[0].data_ptr(),
        dc0=d_before[-1].data_ptr(),
    )
    launch.alone(kernel(cell_name, "pointwise_backward", before.dtype).address, block)
    return dgates, d_before
