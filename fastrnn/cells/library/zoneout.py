"""Zoneout: an LSTM and a GRU of which some units keep their state for a step, drawn by chance while they train.

The masks are inputs of the steps, which a module with `zoneout=` draws, and without it who calls the layer.
"""

from __future__ import annotations

from fastrnn.cells.author import Step
from fastrnn.cells.cell import cell
from fastrnn.cells.symbol import Shares, Symbol, mix, sigmoid, tanh


@cell(gates="ifgo")
def zoneout_lstm(x: Shares, u: Shares, h: Symbol, c: Symbol, *, keep_h: Step, keep_c: Step) -> tuple[Symbol, Symbol]:
    """An LSTM with zoneout: Krueger et al. (2017).

    "Zoneout: regularizing RNNs by randomly preserving hidden activations", arXiv 1606.01305::

        i = sigmoid(x.i + u.i)
        f = sigmoid(x.f + u.f)
        g = tanh(x.g + u.g)
        o = sigmoid(x.o + u.o)
        c_new = f c + i g
        c' = keep_c c + (1 - keep_c) c_new
        h' = keep_h h + (1 - keep_h) o tanh(c_new)

    Gates of x and u: i, f, g, o, as torch.nn.LSTM, whose weights fit.
    States: h, c.
    Inputs of a step: keep_h and keep_c, which the module gives with `zoneout=`: in training 1 with the rate's
    probability, else 0; in evaluation their expectation, the rate. Without it the caller does, each (T, B, H) for all
    layers and directions or (layers·directions, T, B, H), in the input's dtype. The paper's language models have rates
    of 0.05 for h and 0.5 for c.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library import zoneout_lstm
        >>> layer = fastrnn.Recurrent(zoneout_lstm, 3, 4, zoneout=(0.05, 0.5))
        >>> output, (hn, cn) = layer(torch.randn(5, 2, 3))
        >>> output.shape, cn.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    i, f, g, o = sigmoid(x.i + u.i), sigmoid(x.f + u.f), tanh(x.g + u.g), sigmoid(x.o + u.o)
    new = f * c + i * g
    return mix(keep_h, h, o * tanh(new)), mix(keep_c, c, new)


@cell(gates="rzn")
def zoneout_gru(x: Shares, u: Shares, h: Symbol, *, keep_h: Step) -> Symbol:
    """A GRU with zoneout: Krueger et al. (2017).

    "Zoneout: regularizing RNNs by randomly preserving hidden activations", arXiv 1606.01305. The GRU is torch.nn.GRU's,
    with the reset gate after the product::

        r = sigmoid(x.r + u.r)
        z = sigmoid(x.z + u.z)
        n = tanh(x.n + r u.n)
        h' = keep_h h + (1 - keep_h) (z h + (1 - z) n)

    Gates of x and u: r, z, n, as torch.nn.GRU, whose weights fit.
    Inputs of a step: keep_h, as `zoneout_lstm`'s.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library import zoneout_gru
        >>> layer = fastrnn.Recurrent(zoneout_gru, 3, 4)
        >>> every_other = torch.tensor([0.0, 1.0]).repeat(3)[:5, None, None]  # masks of one's own
        >>> output, hn = layer(torch.randn(5, 2, 3), keep_h=every_other)
        >>> output.shape, hn.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    r, z = sigmoid(x.r + u.r), sigmoid(x.z + u.z)
    n = tanh(x.n + r * u.n)
    return mix(keep_h, h, mix(z, h, n))
