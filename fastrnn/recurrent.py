"""`Recurrent` and `RecurrentCell`: layers of any cell, and its single step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.types import Device

from fastrnn import checks
from fastrnn.backends import check_name
from fastrnn.binding import door
from fastrnn.binding.checked import Weights
from fastrnn.binding.configuration import Configuration
from fastrnn.cell_parameters import CellParameters, Init
from fastrnn.cells import Cell
from fastrnn.cells.weights import heads
from fastrnn.lengths import Lengths
from fastrnn.module import Module, watch_of
from fastrnn.zoneout import sizes_of


class Recurrent(Module, CellParameters):
    """A stack of layers of any cell, with everything that `fastrnn.LSTM` can do.

    Args:
        cell: what `fastrnn.cell` makes of a function, or one of `fastrnn.cells.library`.
        input_size, hidden_size: I and H.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as `torch.nn.LSTM`.
        init: how parameters begin that are not to be uniform within ±1/√H: by name, without layer and direction, a
            function that fills one in place, such as those of `torch.nn.init`, or a number. It is called for each head
            of `weight_hh`, (Gu·D, D): these functions go by rows and columns.
        num_heads: N, as in `fastrnn.LSTM`: with N > 1 `weight_hh_l{k}` is (N, Gu·D, D), D = H / N, and begins within
            ±1/√D where `init` does not say otherwise. Not of a cell without gates of the state.
        zoneout: the probability that a unit keeps its state for a step, of cells whose steps take `keep_h`, say, for
            the state h, as `zoneout_lstm` and `zoneout_gru` of `fastrnn.cells.library`; or a tuple of one for each
            such state. The module then gives these inputs itself: in training draws of torch's generator of the
            input's device, (layers·directions, T, B, H), else the probability. None leaves them to the caller.
        recurrent_dropout: see `fastrnn.LSTM`. Not of a cell without gates of the state.
        backend, recompute: see `fastrnn.LSTM`.

    Called with `(input, hx=None, *, lengths=None, resets=None, return_states=False, ...)`. Of a cell with one state hx
    is a tensor, (layers·directions, B, H), and the result `output, hn`; with several it is a tuple of one for each, and
    the result `output, (hn, cn, ...)`. With `return_states` the states of every step follow in the same form. What the
    cell takes as inputs of its steps are further keyword arguments: each a tensor in the input's dtype that broadcasts
    to (layers·directions, T, B, H), or as the input is laid out, so that (T, B, H) is for all layers and directions.
    Everything else is as in `fastrnn.LSTM`.

    Parameters, for layer k, `_reverse` added for the other direction: `weight_ih_l{k}` (Gx·H, I or directions·H), the
    rows of the cell's gates that have a share of the input, in the order of `cell.x_gates`; `weight_hh_l{k}` (Gu·H, H)
    of `cell.u_gates`; `bias_ih_l{k}`, `bias_hh_l{k}`; and each of `cell.parameters`, (H,), as `p_l{k}` for p. `gate`
    gives the rows of one gate. A cell without gates of the state has no `weight_hh_l{k}` and `bias_hh_l{k}`.

    Raises:
        TypeError: `cell` is none; an input of the steps is missing, or no tensor.
        ValueError, RuntimeError, TypeError: else as `fastrnn.LSTM`; for an input of the steps whose shape, dtype or
            device does not fit; for an `init` of parameters that the cell has not, or `num_heads` of one without gates
            of the state; for `zoneout` and `recurrent_dropout` that are no probabilities, or not of this cell.

    Example::

        >>> import torch, fastrnn
        >>> from fastrnn.cells import mix, sigmoid, tanh
        >>> @fastrnn.cell
        ... def minimal_gated_unit(x, u, h):
        ...     f = sigmoid(x.f + u.f)
        ...     return mix(f, tanh(x.n + f * u.n), h)
        >>> layer = fastrnn.Recurrent(minimal_gated_unit, 3, 4, bidirectional=True)
        >>> output, hn = layer(torch.randn(5, 2, 3), lengths=[5, 4])
        >>> output.shape, hn.shape
        (torch.Size([5, 2, 8]), torch.Size([2, 2, 4]))
    """

    _attributes = staticmethod(
        attrgetter(
            "_cell_name",
            "input_size",
            "hidden_size",
            "num_layers",
            "bias",
            "bidirectional",
            "batch_first",
            "dropout",
            "num_heads",
            "recurrent_dropout",
            "training",
            "recompute",
            "prepacked",
            "prepacked_weights",
        )
    )
    """All that a call depends on beside its arguments, the backend and the parameters; see `binding.memory`."""
    recurrent_dropout: float = 0.0

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        init: Init | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int = 1,
        zoneout: float | Sequence[float] | None = None,
        recurrent_dropout: float = 0.0,
        backend: str | None = None,
        recompute: bool = False,
    ) -> None:
        """See the class."""
        _check_layers(num_layers, dropout)
        checks.recurrent_dropout(recurrent_dropout)
        checks.types(bool, batch_first=batch_first, bidirectional=bidirectional)
        if isinstance(input_size, int) and input_size <= 0:
            raise ValueError("input_size must be greater than zero")
        self.num_layers, self.bidirectional = num_layers, bidirectional
        above = (2 if bidirectional else 1) * hidden_size if isinstance(hidden_size, int) else 0
        sizes = [(suffix, above if layer else input_size) for layer, suffix in self._layers()]
        super().__init__(cell, sizes, hidden_size, bias, init, num_heads, zoneout, device=device, dtype=dtype)
        if recurrent_dropout and not cell.u_gates:
            raise ValueError(f"Recurrent: {cell.name} has no gates of the state, recurrent_dropout must be 0")
        self.recurrent_dropout = float(recurrent_dropout)
        self.batch_first, self.dropout = batch_first, float(dropout)
        self.backend = backend and check_name(backend)
        self.recompute = recompute

    def _layers(self) -> list[tuple[int, str]]:
        """Each layer's number with the suffix of its parameters, one for each direction."""
        ways = ("", "_reverse") if self.bidirectional else ("",)
        return [(layer, f"_l{layer}{way}") for layer in range(self.num_layers) for way in ways]

    def _suffixes(self) -> list[str]:
        return [suffix for _, suffix in self._layers()]

    def _configuration(self) -> Configuration:
        return Configuration(
            "Recurrent",
            self._cell_name,
            self.bidirectional,
            self.batch_first,
            self.dropout,
            self.training,
            self.recompute,
            self.backend,
            self.prepacked,
            self.recurrent_dropout,
            prepacked_weights=self.prepacked_weights,
        )

    def _checked_weights(self, input: Any, hx: Any) -> Weights:
        """Raises where attributes do not fit the parameters."""
        _check_layers(self.num_layers, self.dropout, warns=False)
        checks.recurrent_dropout(self.recurrent_dropout)
        weights = self._weights()
        _check_sizes(self, weights)
        return weights

    def _run(
        self,
        input: Any,
        hx: Any,
        lengths: Lengths | None,
        resets: Tensor | None,
        return_states: bool,
        inputs: tuple[Any, ...] = (),
    ) -> tuple[Any, ...]:
        states = (hx,) if hx is not None and len(self.cell.states) == 1 else hx
        return door.call(self, input, hx, states, lengths, resets, return_states, watch_of(self), inputs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        return_states: bool = False,
        **inputs: Tensor,
    ) -> tuple[Any, ...]:
        """`output, hn` or `output, (hn, cn, ...)`, and with `return_states` the states of every step; see the class."""
        output, *states = self._run(input, hx, lengths, resets, return_states, self._inputs(inputs, input))
        return output, *(each if len(each) > 1 else each[0] for each in states)

    def _step_sizes(self, input: Any) -> tuple[int, ...] | None:
        groups = self.num_layers * (2 if self.bidirectional else 1)
        return sizes_of(input, groups, self.hidden_size, self.batch_first)

    def _options(self) -> list[str]:
        shown = [f"num_layers={self.num_layers}"] * (self.num_layers != 1)
        shown += ["batch_first=True"] * self.batch_first + [f"dropout={self.dropout}"] * (self.dropout != 0)
        return [*shown, *["bidirectional=True"] * self.bidirectional, *self._zoneout_shown()]


class RecurrentCell(Module, CellParameters):
    """One step of any cell; see `Recurrent`.

    Args:
        cell, input_size, hidden_size, bias, init, device, dtype, num_heads, zoneout, backend: as `Recurrent`.

    Called with `(input, hx=None, ...)` it takes (B, I) and (B, H), a tuple of these of a cell with several states, or
    (I,) and (H,), and returns the next states in the same form. Inputs of the step are further keyword arguments, each
    a tensor that broadcasts to (B, H), or (H,). Parameters are named as `Recurrent`'s, without layer.

    Raises:
        ValueError, RuntimeError, TypeError: as `Recurrent`.

    Example::

        >>> import torch, fastrnn
        >>> from fastrnn.cells.lstm import lstm
        >>> h, c = fastrnn.RecurrentCell(lstm, 10, 20)(torch.randn(3, 10))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    _attributes = staticmethod(
        attrgetter("_cell_name", "input_size", "hidden_size", "bias", "num_heads", "prepacked", "prepacked_weights")
    )
    """As `Recurrent._attributes`."""

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        init: Init | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int = 1,
        zoneout: float | Sequence[float] | None = None,
        backend: str | None = None,
    ) -> None:
        """See the class."""
        super().__init__(
            cell, [("", input_size)], hidden_size, bias, init, num_heads, zoneout, device=device, dtype=dtype
        )
        self.backend = backend and check_name(backend)

    def _suffixes(self) -> list[str]:
        return [""]

    def _configuration(self) -> Configuration:
        return Configuration(
            "RecurrentCell",
            self._cell_name,
            backend=self.backend,
            prepacked=self.prepacked,
            prepacked_weights=self.prepacked_weights,
            is_cell=True,
        )

    def _checked_weights(self, input: Tensor, hx: tuple[Tensor, ...] | None) -> Weights:
        """Raises where the arguments do not fit the parameters."""
        checks.cell_input("RecurrentCell", input, hx)
        weights = self._weights()
        _check_sizes(self, weights)
        if input.dim() != 2:
            input, hx = input.unsqueeze(0), hx and tuple(state.unsqueeze(0) for state in hx)
        checks.cell_sizes(input, hx or (), self.input_size, self.hidden_size)
        return weights

    def _step(self, input: Tensor, hx: tuple[Tensor, ...] | None, inputs: tuple[Any, ...] = ()) -> tuple[Tensor, ...]:
        return door.call(self, input, hx, hx, None, None, False, watch_of(self), inputs)[1]  # type: ignore[no-any-return]

    def _step_sizes(self, input: Any) -> tuple[int, ...] | None:
        return (*input.shape[:-1], self.hidden_size) if isinstance(input, Tensor) and input.dim() in (1, 2) else None

    def _options(self) -> list[str]:
        return self._zoneout_shown()

    def forward(self, input: Tensor, hx: Any = None, **inputs: Tensor) -> Any:
        """The next h, or of several states a tuple of all: (B, I) and (B, H) -> (B, H), or all of them without B."""
        if hx is not None:
            checks.count_of_states("RecurrentCell", hx, self.cell.states)
            hx = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        after = self._step(input, hx, self._inputs(inputs, input))
        return after if len(after) > 1 else after[0]


def _check_layers(num_layers: int, dropout: Any, warns: bool = True) -> None:
    """As torch.nn, and with its words."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
        )
    if num_layers <= 0:
        raise ValueError("num_layers must be greater than zero")
    if warns and dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers "
            f"greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=3,
        )


def _check_sizes(module: CellParameters, weights: Weights) -> None:
    """That the attributes, which may have been changed, say what the first parameters are."""
    label, (w_ih, w_hh, *_) = type(module).__name__, weights[0]
    got, expected = tuple(w_ih.shape), (len(module.cell.x_gates) * module.hidden_size, module.input_size)
    if got != expected:
        sizes = f"input_size={module.input_size} and hidden_size={module.hidden_size}"
        raise RuntimeError(f"{label}: {sizes} need a weight_ih of shape {expected}, got {got}")
    found = heads(w_hh)
    if found != module.num_heads:
        raise RuntimeError(f"{label}: num_heads={module.num_heads}, but the parameters are of {found}")
