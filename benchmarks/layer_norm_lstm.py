"""An LSTM with layer normalisation, as a cell and as the loop that users of torch compile with TorchScript.

The loop is that of torch's own example (`benchmarks/fastrnns/custom_lstms.py` there), but for the input's product and
its norm, which are computed for all steps at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastrnn
from fastrnn.cells import layer_norm, sigmoid, tanh


@fastrnn.cell(gates="ifgo")
def layer_norm_lstm(
    x: Any,
    u: Any,
    h: Any,
    c: Any,
    *,
    gx_i: Any,
    gx_f: Any,
    gx_g: Any,
    gx_o: Any,
    gu_i: Any,
    gu_f: Any,
    gu_g: Any,
    gu_o: Any,
    b_i: Any,
    b_f: Any,
    b_g: Any,
    b_o: Any,
    gc: Any,
    bc: Any,
) -> Any:
    """Norms of all gates' shares together, of the input's and of the state's, and one of c."""
    xi, xf, xg, xo = layer_norm((x.i, x.f, x.g, x.o), (gx_i, gx_f, gx_g, gx_o), (b_i, b_f, b_g, b_o))
    ui, uf, ug, uo = layer_norm((u.i, u.f, u.g, u.o), (gu_i, gu_f, gu_g, gu_o))
    i, f, g, o = sigmoid(xi + ui), sigmoid(xf + uf), tanh(xg + ug), sigmoid(xo + uo)
    c = f * c + i * g
    return o * tanh(layer_norm(c, gc, bc)), c


INIT = {name: 0.1 * (name[0] == "g") for name in layer_norm_lstm.parameters}
"""How gains and biases begin. With gains of 1 the eager loop's gradient of x, in float32, was 1.1e-4 from the
reference after 100 steps of 256 units, more than is allowed it."""


def _recurrence(gx: Tensor, w_hh: Tensor, b_hh: Tensor, gain_u: Tensor, gain_c: Tensor, bias_c: Tensor) -> Tensor:
    h = torch.zeros([gx.size(1), w_hh.size(1)], dtype=gx.dtype)
    c = h
    output: list[Tensor] = []
    for step in gx.unbind(0):
        u = F.layer_norm(F.linear(h, w_hh, b_hh), [w_hh.size(0)], gain_u)
        i, f, g, o = (step + u).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(F.layer_norm(c, [c.size(1)], gain_c, bias_c))
        output.append(h)
    return torch.stack(output)


@cache
def _scripted() -> Callable[..., Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself is: people still use it for this
        script: Callable[..., Tensor] = torch.jit.script(_recurrence)
    return script


def script(layer: fastrnn.Recurrent) -> Callable[[Tensor], Tensor]:
    """A layer of this cell by TorchScript."""
    given = {name.removesuffix("_l0"): value for name, value in layer.named_parameters()}

    def four(of: str) -> Tensor:
        return torch.cat([given[f"{of}_{gate}"] for gate in layer.cell.x_gates])

    def forward(x: Tensor) -> Tensor:
        gx = F.linear(x, given["weight_ih"], given["bias_ih"])
        gx = F.layer_norm(gx, gx.shape[-1:], four("gx"), four("b"))
        return _scripted()(gx, given["weight_hh"], given["bias_hh"], four("gu"), given["gc"], given["bc"])

    return forward
