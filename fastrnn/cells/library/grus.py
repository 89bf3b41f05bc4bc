"""Gated cells of one state, with fewer gates than a GRU."""

from __future__ import annotations

from fastrnn.cells.cell import cell
from fastrnn.cells.symbol import Shares, Symbol, mix, relu, sigmoid, tanh


@cell(gates="fn")
def mgu(x: Shares, u: Shares, h: Symbol) -> Symbol:
    """The minimal gated unit: Zhou et al. (2016), with the gate after the product.

    "Minimal gated unit for recurrent neural networks", arXiv 1603.09420. One gate f forgets and updates::

        f = sigmoid(x.f + u.f)
        n = tanh(x.n + f u.n)
        h' = (1 - f) h + f n

    The paper multiplies f h by the weights, which is no product with h; here f multiplies the product and its bias, as
    the reset gate of torch.nn.GRU does. Results differ from the paper's, and so do trained weights.

    Gates of x and u: f, n.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library import mgu
        >>> layer = fastrnn.Recurrent(mgu, 3, 4)
        >>> output, hn = layer(torch.randn(5, 2, 3))
        >>> output.shape, hn.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    f = sigmoid(x.f + u.f)
    return mix(f, tanh(x.n + f * u.n), h)


@cell(gates="zn")
def ligru(x: Shares, u: Shares, h: Symbol) -> Symbol:
    """The light GRU: Ravanelli et al. (2018).

    "Light gated recurrent units for speech recognition", arXiv 1803.10225. No reset gate, and relu for tanh::

        z = sigmoid(x.z + u.z)
        n = relu(x.n + u.n)
        h' = z h + (1 - z) n

    The paper normalises W_ih x over the batch, before the state's product is added, which keeps n small. A cell does
    not: the states are unbounded, so give the layer an input that is normalised and begin with orthogonal recurrent
    weights of moderate size.

    Gates of x and u: z, n.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library import ligru
        >>> layer = fastrnn.Recurrent(ligru, 3, 4, init={"weight_hh": torch.nn.init.orthogonal_})
        >>> output, hn = layer(torch.randn(5, 2, 3))
        >>> output.shape, hn.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    z, n = sigmoid(x.z + u.z), relu(x.n + u.n)
    return mix(z, h, n)


@cell(gates="kz")
def star(x: Shares, u: Shares, h: Symbol) -> Symbol:
    """The stackable recurrent cell: Turkoglu et al. (2021).

    "Gating revisited: deep multi-layer RNNs that can be trained", arXiv 1911.11033. Made for many layers: gradients
    neither vanish nor explode from layer to layer::

        k = sigmoid(x.k + u.k)
        z = tanh(x.z)
        h' = tanh((1 - k) h + k z)

    Gates of x: k, z. Of u: k alone, so that weight_hh has as many rows as there are units.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library import star
        >>> layer = fastrnn.Recurrent(star, 3, 4, num_layers=8)
        >>> layer.weight_ih_l0.shape, layer.weight_hh_l0.shape
        (torch.Size([8, 3]), torch.Size([4, 4]))
        >>> output, hn = layer(torch.randn(5, 2, 3))
        >>> output.shape, hn.shape
        (torch.Size([5, 2, 4]), torch.Size([8, 2, 4]))
    """
    k, z = sigmoid(x.k + u.k), tanh(x.z)
    return tanh(mix(k, z, h))
