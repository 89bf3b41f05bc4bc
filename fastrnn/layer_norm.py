"""`LayerNormLSTM` and `LayerNormGRU`: layers of the library's normalised cells, begun as normalisation is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.types import Device

from fastrnn.cell_parameters import Init
from fastrnn.cells import Cell
from fastrnn.lengths import Lengths
from fastrnn.recurrent import Recurrent


class _LayerNorm(Recurrent):
    """What both share. The library is imported, and its cells made, with the first layer."""

    @staticmethod
    def _variants() -> Mapping[str, Cell]:
        raise NotImplementedError

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = False,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        init: Init | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        variant: str = "joint",
        num_heads: int = 1,
        recurrent_dropout: float = 0.0,
        backend: str | None = None,
        recompute: bool = False,
    ) -> None:
        """See the class."""
        from fastrnn.cells.library.normalised import first_values

        label = type(self).__name__
        variants = self._variants()
        if not isinstance(variant, str) or variant not in variants:
            raise ValueError(f"{label}: variant must be one of {', '.join(map(repr, variants))}, got {variant!r}")
        cell = variants[variant]
        first = first_values(cell)
        if isinstance(init, Mapping):
            init = {**first, **init}
        super().__init__(
            cell,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            first if init is None else init,
            device,
            dtype,
            num_heads=num_heads,
            recurrent_dropout=recurrent_dropout,
            backend=backend,
            recompute=recompute,
        )

    @property
    def variant(self) -> str:
        """What is normalised together, as the constructor was told."""
        return next(name for name, cell in self._variants().items() if cell.key == self.cell.key)

    def forward(  # type: ignore[override]  # steps of these cells have no inputs
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        """`output, hn` or `output, (hn, cn)`, and with `return_states` the states of every step; see the class."""
        return super().forward(input, hx, lengths=lengths, resets=resets, return_states=return_states)


class LayerNormLSTM(_LayerNorm):
    """A stack of LSTMs with layer normalisation, with everything that `fastrnn.LSTM` can do but `proj_size`;
    `fastrnn.probe` shows its states, not its gates, which no step saves.

    Of each step the product of the input and that of the state are normalised, and the memory as the output reads it:
    `fastrnn.cells.library.layer_norm_lstm` has the equations. eps is 1e-5, units of all heads are normalised together.

    Args:
        input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, device, dtype: as `torch.nn.LSTM`.
        bias: whether products have biases before they are normalised, beside those after; as a rule they have not.
        init: as `fastrnn.Recurrent`, of what does not begin as follows: gains at 1, biases of the normalisation at 0,
            all else uniform within ±1/√H. With `{"bias_f": 1.0}` it begins with remembering.
        variant: "joint", the four gates of a product are one vector: Ba et al., and haste; "per_gate", each gate is
            normalised by itself; "normalised_memory", joint, and c is carried as it was normalised: the example
            benchmarks/fastrnns of torch's repository.
        num_heads, recurrent_dropout, backend, recompute: see `fastrnn.LSTM`. On a GPU the kernels take one head, of up
            to 2048 units; else it is a loop.

    Called with `(input, hx=None, *, lengths=None, resets=None, return_states=False)` it returns `output, (hn, cn)`, all
    as `fastrnn.LSTM`: input (T, B, I), hx two of (layers·directions, B, H), output (T, B, directions·H).

    Parameters, for layer k, `_reverse` added for the other direction: `weight_ih_l{k}` (4H, I or directions·H) and
    `weight_hh_l{k}` (4H, H), rows as torch.nn.LSTM's; for each gate y of i, f, g, o the gains of both products and the
    bias, `gain_xy_l{k}`, `gain_uy_l{k}` and `bias_y_l{k}`, (H,); of the memory `gain_c_l{k}` and `bias_c_l{k}`, (H,).

    Weights from elsewhere: in torch's example `layernorm_i.weight` (4H,) is gain_xi, gain_xf, gain_xg, gain_xo, one
    after the other, `layernorm_h.weight` gain_ui to gain_uo, the sum of `layernorm_i.bias` and `layernorm_h.bias`
    bias_i to bias_o, and `layernorm_c.weight` and `.bias` are gain_c and bias_c. haste's gates lie in the order i, g,
    f, o, and `kernel` (I, 4H) and `recurrent_kernel` (H, 4H) are transposes; `gamma[0]` are gain_x, `gamma[1]` gain_u,
    `bias` the gates' biases, `gamma_h` and `beta_h` gain_c and bias_c.

    Raises:
        ValueError: `variant` is none of these; an `init` of parameters that there are not.
        ValueError, RuntimeError, TypeError: else as `fastrnn.Recurrent`.

    Source: Ba, Kiros and Hinton, "Layer normalization", arXiv 1607.06450 (2016).

    Example::

        >>> import torch, fastrnn
        >>> layer = fastrnn.LayerNormLSTM(10, 20, num_layers=2, init={"bias_f": 1.0})
        >>> output, (hn, cn) = layer(torch.randn(5, 3, 10), lengths=[5, 2, 0])
        >>> output.shape, cn.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
        >>> layer
        LayerNormLSTM(layer_norm_lstm, 10, 20, bias=False, num_layers=2)
    """

    @staticmethod
    def _variants() -> Mapping[str, Cell]:
        from fastrnn.cells.library.normalised import LSTMS

        return LSTMS


class LayerNormGRU(_LayerNorm):
    """A stack of GRUs with layer normalisation, with everything that `fastrnn.GRU` can do; `fastrnn.probe`
    shows its states, not its gates, which no step saves.

    Of each step the product of the input and that of the state are normalised: `fastrnn.cells.library.layer_norm_gru`
    has the equations. eps is 1e-5, units of all heads are normalised together.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, init, device, dtype, num_heads,
            recurrent_dropout, backend, recompute: as `fastrnn.LayerNormLSTM`.
        variant: "joint", the three gates of a product are one vector, as haste's; "candidate_apart", r and z are one,
            and n another, as in the paper, whose z is 1 - z here; "per_gate", each gate is normalised by itself.

    Called with `(input, hx=None, *, lengths=None, resets=None, return_states=False)` it returns `output, hn`, all as
    `fastrnn.GRU`: input (T, B, I), hx (layers·directions, B, H), output (T, B, directions·H).

    Parameters, for layer k, `_reverse` added for the other direction: `weight_ih_l{k}` (3H, I or directions·H) and
    `weight_hh_l{k}` (3H, H), rows as torch.nn.GRU's; for each gate y of r, z, n the gains of both products,
    `gain_xy_l{k}` and `gain_uy_l{k}`, (H,); the biases `bias_r_l{k}`, `bias_z_l{k}`, and of n, whose product of the
    state is multiplied by r with its bias, `bias_xn_l{k}` and `bias_un_l{k}`, (H,).

    Weights from haste: its gates lie in the order z, r, n, and `kernel` (I, 3H) and `recurrent_kernel` (H, 3H) are
    transposes; `gamma[0]` (3H,) are gain_x, `gamma[1]` gain_u; bias_z and bias_r are the sums of `bias` and
    `recurrent_bias`, whose last parts are bias_xn and bias_un.

    Raises:
        ValueError, RuntimeError, TypeError: as `fastrnn.LayerNormLSTM`.

    Source: Ba, Kiros and Hinton, "Layer normalization", arXiv 1607.06450 (2016).

    Example::

        >>> import torch, fastrnn
        >>> layer = fastrnn.LayerNormGRU(10, 20, bidirectional=True, variant="per_gate")
        >>> output, hn = layer(torch.randn(5, 3, 10))
        >>> output.shape, hn.shape
        (torch.Size([5, 3, 40]), torch.Size([2, 3, 20]))
        >>> layer.gain_xr_l0[0].item()
        1.0
    """

    @staticmethod
    def _variants() -> Mapping[str, Cell]:
        from fastrnn.cells.library.normalised import GRUS

        return GRUS
