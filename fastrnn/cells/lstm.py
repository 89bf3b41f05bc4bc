"""Long short-term memory, as torch.nn.LSTM: Hochreiter and Schmidhuber (1997), the forget gate by Gers et al. (2000).

i = σ(gx_i + gh_i)        f = σ(gx_f + gh_f)        g = tanh(gx_g + gh_g)        o = σ(gx_o + gh_o)
c' = f c + i g
h' = o tanh(c')
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn.cells.spec import Cell, States


def step(gx: Tensor, gh: Tensor, states: States) -> tuple[States, tuple[Tensor, ...]]:
    i, f, g, o = (gx + gh).unbind(-2)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * states[1] + i * g
    return (o * c.tanh(), c), (i, f, g, o)


def step_backward(
    dstates: States, saved: tuple[Tensor, ...], before: States, after: States
) -> tuple[Tensor, Tensor, States]:
    """With σ' = σ (1 - σ) and tanh' = 1 - tanh², and dc the gradient that reaches c' from the step after:

        dc   += dh o (1 - tanh²(c'))
        da_o  = dh tanh(c') o (1 - o)
        da_i  = dc g i (1 - i)         da_f = dc c f (1 - f)         da_g = dc i (1 - g²)
        dc_prev = dc f

    where da is the gradient of a gate's pre-activation: dgx = dgh = da, since gx and gh are only ever added.
    """
    i, f, g, o = saved
    tanh_c = after[1].tanh()
    dh, dc = dstates
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    da = torch.stack(
        (
            dc * g * i * (1 - i),
            dc * before[1] * f * (1 - f),
            dc * i * (1 - g * g),
            dh * tanh_c * o * (1 - o),
        ),
        -2,
    )
    return da, da, (torch.zeros_like(dh), dc * f)


def unprojected_output(saved: tuple[Tensor, ...], c: Tensor) -> Tensor:
    """o tanh(c'), what a projection `w_hr` (P, H) multiplies (Sak et al., 2014), from what `step` saved and c'."""
    return saved[3] * c.tanh()


LSTM = Cell("lstm", ("i", "f", "g", "o"), ("h", "c"), ("i", "f", "g", "o"), step, step_backward)
