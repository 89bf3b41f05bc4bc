"""LSTMs of other gates or memories than torch's."""

from __future__ import annotations

from fastrnn.cells.cell import cell
from fastrnn.cells.symbol import (
    Shares,
    Symbol,
    exp,
    log_sigmoid,
    maximum,
    mix,
    sigmoid,
    stop_gradient,
    tanh,
    where,
)


@cell(gates="ifgo")
def peephole_lstm(
    x: Shares, u: Shares, h: Symbol, c: Symbol, *, p_i: Symbol, p_f: Symbol, p_o: Symbol
) -> tuple[Symbol, Symbol]:
    """An LSTM whose gates see the memory: Gers and Schmidhuber (2000).

    "Recurrent nets that time and count", in the form that Greff et al. (arXiv 1503.04069) call vanilla. The output gate
    sees the memory after the step::

        i = sigmoid(x.i + u.i + p_i c)
        f = sigmoid(x.f + u.f + p_f c)
        g = tanh(x.g + u.g)
        c' = f c + i g
        o = sigmoid(x.o + u.o + p_o c')
        h' = o tanh(c')

    Gates of x and u: i, f, g, o, as torch.nn.LSTM.
    States: h, c.
    Parameters: p_i, p_f, p_o (H,); with all at 0 it is torch.nn.LSTM.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library import peephole_lstm
        >>> layer = fastrnn.Recurrent(peephole_lstm, 3, 4, init={"p_i": 0, "p_f": 0, "p_o": 0})
        >>> _ = torch.nn.init.ones_(layer.gate("bias_ih_l0", "f"))  # remember, to begin with
        >>> output, (hn, cn) = layer(torch.randn(5, 2, 3))
        >>> output.shape, cn.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    i, f = sigmoid(x.i + u.i + p_i * c), sigmoid(x.f + u.f + p_f * c)
    c = f * c + i * tanh(x.g + u.g)
    return sigmoid(x.o + u.o + p_o * c) * tanh(c), c


@cell(gates="fgo")
def cifg(x: Shares, u: Shares, h: Symbol, c: Symbol) -> tuple[Symbol, Symbol]:
    """An LSTM with one gate for input and forgetting: Greff et al. (2017).

    "LSTM: a search space odyssey", arXiv 1503.04069: coupled input and forget gate, here without the peepholes::

        f = sigmoid(x.f + u.f)
        g = tanh(x.g + u.g)
        o = sigmoid(x.o + u.o)
        c' = f c + (1 - f) g
        h' = o tanh(c')

    Gates of x and u: f, g, o; three quarters of torch.nn.LSTM's weights. From zeros `|c|` stays below 1.
    States: h, c.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library import cifg
        >>> layer = fastrnn.Recurrent(cifg, 3, 4)
        >>> _ = torch.nn.init.ones_(layer.gate("bias_ih_l0", "f"))  # remember, to begin with
        >>> output, (hn, cn) = layer(torch.randn(5, 2, 3))
        >>> output.shape, cn.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    f, g, o = sigmoid(x.f + u.f), tanh(x.g + u.g), sigmoid(x.o + u.o)
    c = mix(f, c, g)
    return o * tanh(c), c


EMPTY = -1e30
"""The logarithm of what an empty memory weighs: exp of it is 0, and infinite is no constant of a cell."""


@cell(gates="ifzo")
def slstm(x: Shares, u: Shares, h: Symbol, c: Symbol, n: Symbol, m: Symbol) -> tuple[Symbol, Symbol, Symbol, Symbol]:
    """xLSTM's scalar memory, stabilised: Beck et al. (2024).

    "xLSTM: extended long short-term memory", arXiv 2405.04517, with the forget gate as sigmoid. The input gate is an
    exponential. What c and n hold is to be multiplied by exp(m)::

        log_f = log sigmoid(x.f + u.f) + m
        log_i = x.i + u.i
        m' = max(log_f, log_i)
        i = exp(log_i - m')
        f = exp(log_f - m')
        c' = f c + i tanh(x.z + u.z)
        n' = f n + i
        h' = sigmoid(x.o + u.o) c' / n'

    A memory with n = 0 is empty and weighs nothing, f = 0, as where the authors' code begins: a layer's first step
    without hx, and one after a reset, make n' = 1, and n stays at or above 1 from then on. So nothing overflows, and
    nothing is divided by 0. Initial states of your own have n > 0, or are zeros. h does not depend on which m' is
    taken, and m' is a constant to the gradient: gradients of h are exact, those of a loss on c and n are for this m'.

    The paper's recurrent weights are block-diagonal, a block for each head: `num_heads` of the layer. Its layer also
    convolves the input of i and f, normalises h and has a residual way around: that is for the module around this one.
    `fastrnn.xlstm` takes weights from the authors' package.

    Gates of x and u: i, f, z, o.
    States: h, c, n, m.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library import slstm
        >>> layer = fastrnn.Recurrent(slstm, 3, 4, num_heads=2)
        >>> _ = torch.nn.init.uniform_(layer.gate("bias_ih_l0", "f"), 3, 6)  # memories of 20 to 400 steps
        >>> output, (hn, cn, nn, mn) = layer(torch.randn(5, 2, 3))
        >>> bool((nn >= 1).all())
        True
    """
    log_f, log_i = where(n > 0, log_sigmoid(x.f + u.f) + m, EMPTY), x.i + u.i
    m = stop_gradient(maximum(log_f, log_i))
    i, f = exp(log_i - m), exp(log_f - m)
    c, n = f * c + i * tanh(x.z + u.z), f * n + i
    return sigmoid(x.o + u.o) * (c / n), c, n, m
