"""RNNCell, GRUCell and LSTMCell: drop-in modules for their torch.nn namesakes, one step through the same operators.

Parameters are looked up by name at every call, and sizes are theirs: torch.nn's cells do the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from fastrnn import checks, sizes
from fastrnn.backends import check_name
from fastrnn.binding import door
from fastrnn.binding.checked import Weights
from fastrnn.binding.configuration import Configuration
from fastrnn.module import Module, watch_of

_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Cell(Module, nn.RNNCellBase):
    """What the three cells share: `nn.RNNCellBase`'s parameters, and one step through the same operators."""

    _cell_name: Any
    """of what it computes, as in `CELLS`"""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, chunks: int, device: Any, dtype: Any, backend: str | None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, chunks, device=device, dtype=dtype)
        self.backend = backend and check_name(backend)

    def _step(self, input: Tensor, hx: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        return door.call(self, input, hx, hx, None, None, False, watch_of(self))[1]  # type: ignore[no-any-return]

    @staticmethod
    def _attributes(cell: _Cell) -> tuple[Any, ...]:
        """All that a step depends on beside its arguments, the backend and the parameters; see `binding.memory`."""
        kind = getattr(cell, "nonlinearity", None)  # in less time than the cell's name
        return (
            kind,
            cell.hidden_size,
            cell.prepacked,
            cell.prepacked_weights,
            cell._parameters.get("bias_ih", cell) is None,
        )

    def _configuration(self) -> Configuration:
        label = f"{self._cell_name.split('_')[0].upper()}Cell"
        return Configuration(
            label,
            self._cell_name,
            backend=self.backend,
            prepacked=self.prepacked,
            prepacked_weights=self.prepacked_weights,
            is_cell=True,
        )

    def _names(self) -> list[tuple[str, ...]]:
        return [_PARAMETERS[: 2 if self.bias_ih is None else 4]]

    def _checked_weights(self, input: Tensor, hx: tuple[Tensor, ...] | None) -> Weights:
        """Raises where the arguments do not fit the parameters."""
        checks.cell_input(self._configuration().label, input, hx)
        if input.dim() != 2:
            input, hx = input.unsqueeze(0), hx and tuple(state.unsqueeze(0) for state in hx)
        (names,) = self._names()
        weights = [getattr(self, name) for name in names]  # once: a parametrization may draw
        checks.cell_sizes(input, hx or (), weights[0].shape[-1], weights[1].shape[-1])
        if hx is None:
            sizes.check_cell(self, weights[1])
        return [weights]


class RNNCell(_Cell):
    """One step of an Elman network, as `torch.nn.RNNCell`; see `RNN`.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: as `torch.nn.RNNCell`, in the same order.
        backend: see `LSTM`.

    Called with `(input, hx=None)` it takes (B, I) and (B, H), or (I,) and (H,), and returns the next h.

    Raises:
        ValueError, RuntimeError: as torch.nn.RNNCell for the same mistakes.

    Example::

        >>> import torch, fastrnn
        >>> fastrnn.RNNCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str | None = None,
    ) -> None:
        """See the class."""
        super().__init__(input_size, hidden_size, bias, 1, device, dtype, backend)
        self.nonlinearity = nonlinearity

    @property
    def _cell_name(self) -> str:
        return f"rnn_{self.nonlinearity}"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next h: (B, I) and (B, H) -> (B, H), or all of them without B."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._step(input, None if hx is None else (hx,))[0]


class GRUCell(_Cell):
    """One step of gated recurrent units, as `torch.nn.GRUCell`; see `GRU`.

    Args:
        input_size, hidden_size, bias, device, dtype: as `torch.nn.GRUCell`, in the same order.
        backend: see `LSTM`.

    Called with `(input, hx=None)` it takes (B, I) and (B, H), or (I,) and (H,), and returns the next h.

    Raises:
        ValueError, RuntimeError: as torch.nn.GRUCell for the same mistakes.

    Example::

        >>> import torch, fastrnn
        >>> fastrnn.GRUCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    _cell_name = "gru"

    # Written out in each cell: Python's message for a wrong argument names the class that has the constructor.
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str | None = None,
    ) -> None:
        """See the class."""
        super().__init__(input_size, hidden_size, bias, 3, device, dtype, backend)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next h: (B, I) and (B, H) -> (B, H), or all of them without B."""
        return self._step(input, None if hx is None else (hx,))[0]


class LSTMCell(_Cell):
    """One step of a long short-term memory, as `torch.nn.LSTMCell`; see `LSTM`.

    Args:
        input_size, hidden_size, bias, device, dtype: as `torch.nn.LSTMCell`, in the same order.
        backend: see `LSTM`.

    Called with `(input, hx=None)` it takes (B, I) and a pair of (B, H), or (I,) and a pair of (H,), and returns
    the next (h, c).

    Raises:
        ValueError, RuntimeError, TypeError: as torch.nn.LSTMCell for the same mistakes.

    Example::

        >>> import torch, fastrnn
        >>> h, c = fastrnn.LSTMCell(10, 20)(torch.randn(3, 10))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str | None = None,
    ) -> None:
        """See the class."""
        super().__init__(input_size, hidden_size, bias, 4, device, dtype, backend)

    _cell_name = "lstm"

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The next h and c: (B, I) and a pair of (B, H) -> a pair of (B, H), or all of them without B."""
        if hx is not None:
            checks.count_of_states("LSTMCell", hx, ("h", "c"))
        h, c = self._step(input, None if hx is None else tuple(hx))
        return h, c
