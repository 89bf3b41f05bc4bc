"""The LSTM with layer normalisation as the loop that users of torch compile with TorchScript, and how both begin.

The loop is that of torch's own example (`benchmarks/fastrnns/custom_lstms.py` there), but for the input's product and
its norm, which are computed for all steps at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

import fastrnn
from fastrnn.cells.library.normalised import first_values, layer_norm_lstm

INIT = {name: 0.1 * value for name, value in first_values(layer_norm_lstm).items()}
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
        return torch.cat([given[f"{of}{gate}"] for gate in layer.cell.x_gates])

    def forward(x: Tensor) -> Tensor:
        gx = F.linear(x, given["weight_ih"], given["bias_ih"])
        gx = F.layer_norm(gx, gx.shape[-1:], four("gain_x"), four("bias_"))
        return _scripted()(gx, given["weight_hh"], given["bias_hh"], four("gain_u"), given["gain_c"], given["bias_c"])

    return forward
