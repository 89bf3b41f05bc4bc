"""Layer normalisation: an LSTM and a GRU whose products, and the LSTM's memory, are normalised over the units.

Each is one function, which is made a cell for each of its variants: what is normalised together, and what is carried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastrnn.cells.cell import cell
from fastrnn.cells.contract import Cell
from fastrnn.cells.normalisation import layer_norm
from fastrnn.cells.symbol import Shares, Symbol, mix, sigmoid, tanh


def first_values(cell: Cell) -> dict[str, float]:
    """What normalisation begins with, for `init` of `fastrnn.Recurrent`: parameters gain_... 1, bias_... 0.

    Example:
        >>> from fastrnn.cells.library.normalised import first_values, layer_norm_gru
        >>> first_values(layer_norm_gru)["gain_xr"]
        1.0
    """
    kinds = {"gain": 1.0, "bias": 0.0}
    return {name: kinds[kind] for name in cell.parameters if (kind := name.partition("_")[0]) in kinds}


def _normalised(
    shares: Sequence[Symbol], together: Sequence[int], gains: Sequence[Symbol], biases: Sequence[Symbol] | None = None
) -> list[Symbol]:
    """The gates' shares of one product, the first `together[0]` of them normalised as one vector, and so on."""
    made: list[Symbol] = []
    for count in together:
        part = slice(len(made), len(made) + count)
        made += layer_norm(shares[part], gains[part], biases[part] if biases else 0)
    return made


def _lstm(name: str, what: str, together: Sequence[int], *, carries_normalised: bool = False) -> Cell:
    def step(
        x: Shares,
        u: Shares,
        h: Symbol,
        c: Symbol,
        *,
        gain_xi: Symbol,
        gain_xf: Symbol,
        gain_xg: Symbol,
        gain_xo: Symbol,
        gain_ui: Symbol,
        gain_uf: Symbol,
        gain_ug: Symbol,
        gain_uo: Symbol,
        bias_i: Symbol,
        bias_f: Symbol,
        bias_g: Symbol,
        bias_o: Symbol,
        gain_c: Symbol,
        bias_c: Symbol,
    ) -> tuple[Symbol, Symbol]:
        gains_x, gains_u = (gain_xi, gain_xf, gain_xg, gain_xo), (gain_ui, gain_uf, gain_ug, gain_uo)
        of_x = _normalised((x.i, x.f, x.g, x.o), together, gains_x, (bias_i, bias_f, bias_g, bias_o))
        of_u = _normalised((u.i, u.f, u.g, u.o), together, gains_u)
        i, f = sigmoid(of_x[0] + of_u[0]), sigmoid(of_x[1] + of_u[1])
        g, o = tanh(of_x[2] + of_u[2]), sigmoid(of_x[3] + of_u[3])
        c = f * c + i * g
        read = layer_norm(c, gain_c, bias_c)
        return o * tanh(read), read if carries_normalised else c

    step.__name__ = step.__qualname__ = name
    step.__doc__ = what
    return cell(gates="ifgo")(step)


def _gru(name: str, what: str, together: Sequence[int]) -> Cell:
    def step(
        x: Shares,
        u: Shares,
        h: Symbol,
        *,
        gain_xr: Symbol,
        gain_xz: Symbol,
        gain_xn: Symbol,
        gain_ur: Symbol,
        gain_uz: Symbol,
        gain_un: Symbol,
        bias_r: Symbol,
        bias_z: Symbol,
        bias_xn: Symbol,
        bias_un: Symbol,
    ) -> Symbol:
        of_x = _normalised((x.r, x.z, x.n), together, (gain_xr, gain_xz, gain_xn))
        of_u = _normalised((u.r, u.z, u.n), together, (gain_ur, gain_uz, gain_un))
        r, z = sigmoid(of_x[0] + of_u[0] + bias_r), sigmoid(of_x[1] + of_u[1] + bias_z)
        n = tanh(of_x[2] + bias_xn + r * (of_u[2] + bias_un))
        return mix(z, h, n)

    step.__name__ = step.__qualname__ = name
    step.__doc__ = what
    return cell(gates="rzn")(step)


layer_norm_lstm = _lstm(
    "layer_norm_lstm",
    """An LSTM with layer normalisation: Ba et al. (2016).

    "Layer normalization", arXiv 1607.06450. LN is (a - μ) / √(σ² + 1e-5), over all four gates of a product together::

        x.i, x.f, x.g, x.o = gain_x LN(x.i, x.f, x.g, x.o)
        u.i, u.f, u.g, u.o = gain_u LN(u.i, u.f, u.g, u.o)
        i = sigmoid(x.i + u.i + bias_i), f = sigmoid(x.f + u.f + bias_f)
        g = tanh(x.g + u.g + bias_g), o = sigmoid(x.o + u.o + bias_o)
        c' = f c + i g
        h' = o tanh(gain_c LN(c') + bias_c)

    Units of all heads are normalised together. haste computes the same. `layer_norm_lstm_per_gate` normalises each gate
    by itself; `layer_norm_lstm_normalised_memory` carries the memory as it was normalised, as the example of torch's
    repository does.

    Gates of x and u: i, f, g, o, as torch.nn.LSTM.
    States: h, c.
    Parameters: gain_xi, gain_xf, gain_xg, gain_xo, gain_ui, gain_uf, gain_ug, gain_uo, bias_i, bias_f, bias_g, bias_o,
    gain_c, bias_c (H,). Gains begin at 1 and biases at 0, bias_f maybe at 1, to remember; `fastrnn.LayerNormLSTM` does
    that. The products need no biases of their own.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library.normalised import first_values, layer_norm_lstm
        >>> init = {**first_values(layer_norm_lstm), "bias_f": 1.0}
        >>> layer = fastrnn.Recurrent(layer_norm_lstm, 3, 4, bias=False, init=init)
        >>> output, (hn, cn) = layer(torch.randn(5, 2, 3))
        >>> output.shape, cn.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """,
    (4,),
)
layer_norm_lstm_per_gate = _lstm(
    "layer_norm_lstm_per_gate",
    "`layer_norm_lstm`, with each gate's share of each product normalised by itself.",
    (1, 1, 1, 1),
)
layer_norm_lstm_normalised_memory = _lstm(
    "layer_norm_lstm_normalised_memory",
    "`layer_norm_lstm`, with c' = gain_c LN(f c + i g) + bias_c and h' = o tanh(c').",
    (4,),
    carries_normalised=True,
)
layer_norm_gru = _gru(
    "layer_norm_gru",
    """A GRU with layer normalisation: Ba et al. (2016), over all three gates of a product.

    "Layer normalization", arXiv 1607.06450, in haste's form. LN is (a - μ) / √(σ² + 1e-5), of all gates of a product::

        x.r, x.z, x.n = gain_x LN(x.r, x.z, x.n)
        u.r, u.z, u.n = gain_u LN(u.r, u.z, u.n)
        r = sigmoid(x.r + u.r + bias_r)
        z = sigmoid(x.z + u.z + bias_z)
        n = tanh(x.n + bias_xn + r (u.n + bias_un))
        h' = z h + (1 - z) n

    Units of all heads are normalised together. The paper has weights of their own for n, so that its r and z are
    normalised together and its n alone: that is `layer_norm_gru_candidate_apart`, but for the paper's z, which is 1 - z
    here. `layer_norm_gru_per_gate` normalises each gate by itself.

    Gates of x and u: r, z, n, as torch.nn.GRU.
    Parameters: gain_xr, gain_xz, gain_xn, gain_ur, gain_uz, gain_un, bias_r, bias_z, bias_xn, bias_un (H,). Gains begin
    at 1 and biases at 0; `fastrnn.LayerNormGRU` does that. The products need no biases of their own.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells.library.normalised import first_values, layer_norm_gru
        >>> layer = fastrnn.Recurrent(layer_norm_gru, 3, 4, bias=False, init=first_values(layer_norm_gru))
        >>> output, hn = layer(torch.randn(5, 2, 3))
        >>> output.shape, hn.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """,
    (3,),
)
layer_norm_gru_candidate_apart = _gru(
    "layer_norm_gru_candidate_apart",
    "`layer_norm_gru`, with r and z normalised together, and n by itself.",
    (2, 1),
)
layer_norm_gru_per_gate = _gru(
    "layer_norm_gru_per_gate",
    "`layer_norm_gru`, with each gate's share of each product normalised by itself.",
    (1, 1, 1),
)

LSTMS: Mapping[str, Cell] = {
    "joint": layer_norm_lstm,
    "per_gate": layer_norm_lstm_per_gate,
    "normalised_memory": layer_norm_lstm_normalised_memory,
}
"""The variants of `fastrnn.LayerNormLSTM`."""
GRUS: Mapping[str, Cell] = {
    "joint": layer_norm_gru,
    "candidate_apart": layer_norm_gru_candidate_apart,
    "per_gate": layer_norm_gru_per_gate,
}
"""The variants of `fastrnn.LayerNormGRU`."""
