"""Cells without a product of the state: a unit sees its own past alone, and layers above mix the units."""

from __future__ import annotations

from fastrnn.cells.cell import cell
from fastrnn.cells.symbol import Shares, Symbol, log_sigmoid, mix, relu, sigmoid


@cell(gates="a")
def indrnn(x: Shares, h: Symbol, *, w: Symbol) -> Symbol:
    """The independently recurrent network: Li et al. (2018).

    "Independently recurrent neural network (IndRNN): building a longer and deeper RNN", arXiv 1803.04831::

        h' = relu(x.a + w h)

    A unit's state after T steps is up to w to the power of T times what it was. So the authors begin with w uniform
    within 0 and 1, in a last layer of which only the last output is used with w near 1, and keep `|w|` at or below
    2^(1/T) while they train, for long sequences at or below 1: clamp it after each of the optimiser's steps.

    Gates of x: a. Of u: none, there are no recurrent weights and no b_hh.
    Parameters: w (H,), by which each unit multiplies its state.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library import indrnn
        >>> layer = fastrnn.Recurrent(indrnn, 3, 4, num_layers=2, init={"w": torch.nn.init.uniform_})
        >>> output, hn = layer(torch.randn(5, 2, 3))
        >>> output.shape, hn.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
        >>> with torch.no_grad():
        ...     for w in (layer.w_l0, layer.w_l1):
        ...         _ = w.clamp_(-1, 1)
    """
    return relu(x.a + w * h)


@cell(gates="zn")
def mingru(x: Shares, h: Symbol) -> Symbol:
    """The minimal GRU: Feng et al. (2024).

    "Were RNNs all we needed?", arXiv 2410.01201, in the plain form: there, training computes in logarithms, which asks
    for a positive n::

        z = sigmoid(x.z)
        n = x.n
        h' = (1 - z) h + z n

    Gates of x: z, n. Of u: none, there are no recurrent weights and no b_hh.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library import mingru
        >>> layer = fastrnn.Recurrent(mingru, 3, 4, num_layers=2)
        >>> output, hn = layer(torch.randn(5, 2, 3))
        >>> output.shape, hn.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """
    return mix(sigmoid(x.z), x.n, h)


@cell(gates="fin")
def minlstm(x: Shares, h: Symbol) -> Symbol:
    """The minimal LSTM, its gates normalised: Feng et al. (2024).

    "Were RNNs all we needed?", arXiv 2410.01201, in the plain form, as `mingru`::

        f = sigmoid(x.f)
        i = sigmoid(x.i)
        h' = f / (f + i) h + i / (f + i) x.n

    The share f / (f + i) is computed as sigmoid(log f - log i), so that it has a value where both gates are closed. A
    larger bias of f makes for a longer memory.

    Gates of x: f, i, n. Of u: none, there are no recurrent weights and no b_hh.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library import minlstm
        >>> layer = fastrnn.Recurrent(minlstm, 3, 4)
        >>> _ = torch.nn.init.ones_(layer.gate("bias_ih_l0", "f"))
        >>> output, hn = layer(torch.randn(5, 2, 3))
        >>> output.shape, hn.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    return mix(sigmoid(log_sigmoid(x.f) - log_sigmoid(x.i)), h, x.n)
