"""Gated recurrent unit, as torch.nn.GRU: Cho et al. (2014), with the reset gate applied after the product.

    r = σ(gx_r + gh_r)        z = σ(gx_z + gh_z)
    a = gh_n                                                  (h W_n + b_hn: the bias lies inside the reset gate)
    n = tanh(gx_n + r a)
    h' = (1 - z) n + z h

cuDNN computes the same; so does Keras with `reset_after=True`. Cho et al. reset h before the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn.cells.spec import Cell, States


def step(gx: Tensor, gh: Tensor, states: States) -> tuple[States, tuple[Tensor, ...]]:
    (x_r, x_z, x_n), (h_r, h_z, a) = gx.unbind(-2), gh.unbind(-2)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * a).tanh()
    return ((1 - z) * n + z * states[0],), (n, r, z, a)


def step_backward(
    dstates: States, saved: tuple[Tensor, ...], before: States, after: States
) -> tuple[Tensor, Tensor, States]:
    """With σ' = σ (1 - σ) and tanh' = 1 - tanh²:

        da_n = dh (1 - z) (1 - n²)
        da_z = dh (h - n) z (1 - z)
        da_r = da_n a r (1 - r)
        da   = da_n r
        dh_prev = dh z

    so dgx = (da_r, da_z, da_n) and dgh = (da_r, da_z, da). What is saved is ordered (n, r, z, a) so that the gradients
    that take its place, (da_n, da_r, da_z, da), hold dgx in the first three blocks and dgh in the last three.
    """
    n, r, z, a = saved
    (dh,) = dstates
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (before[0] - n) * z * (1 - z)
    dr = dn * a * r * (1 - r)
    return torch.stack((dr, dz, dn), -2), torch.stack((dr, dz, dn * r), -2), (dh * z,)


GRU = Cell("gru", ("r", "z", "n"), ("h",), ("n", "r", "z", "a"), step, step_backward)
