"""RNNCell, GRUCell and LSTMCell: drop-in modules for their torch.nn namesakes, one step through the same operators.

Parameters are looked up by name at every call, and sizes are theirs: torch.nn's cells do the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.types import Device

from fastrnn import checks, repeated, sizes, stack
from fastrnn.backends import check_name, requested
from fastrnn.module import Module, watch_of
from fastrnn.prepare import Options
from fastrnn.remembered import Form

_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Step(NamedTuple):
    """What `prepare_step` is called with."""

    options: Options
    weights: list[Tensor]
    input: Tensor
    """(B, I)"""
    states: tuple[Tensor, ...] | None
    """(B, H) each"""


class _Cell(Module, nn.RNNCellBase):
    """What the three cells share: `nn.RNNCellBase`'s parameters, and one step through the same operators."""

    _cell_name: Any
    """of what it computes, as in `CELLS`"""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, chunks: int, device: Any, dtype: Any, backend: str | None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, chunks, device=device, dtype=dtype)
        self.backend = backend and check_name(backend)

    def _step(self, cell_name: str, input: Tensor, hx: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        watch = watch_of(self)
        repeats = watch is None and repeated.is_possible(input)
        if repeats:
            backend = requested(self.backend)
            unbiased = self._parameters.get("bias_ih", self) is None
            key = backend, cell_name, self.hidden_size, self.prepacked, unbiased
            known = repeated.call(self, key, input, hx)
            if known is not None:
                return known[1]
        step = self._checked(cell_name, input, hx)
        after = stack.step(*step, watch)
        after = after if input.dim() == 2 else tuple(state.squeeze(0) for state in after)
        if repeats:
            form = Form(cell_name, cell=True, backend=backend, prepacked=self.prepacked)
            repeated.remember(self, key, form, [_PARAMETERS[: len(step.weights)]], input, hx, after[0])
        return after

    def _checked(self, cell_name: str, input: Tensor, hx: tuple[Tensor, ...] | None) -> _Step:
        """A call that is not known yet, batched; raises what is wrong with its arguments."""
        label = f"{cell_name.split('_')[0].upper()}Cell"
        checks.cell_input(label, input, hx)
        if input.dim() != 2:
            input, hx = input.unsqueeze(0), hx and tuple(state.unsqueeze(0) for state in hx)
        checks.cell_sizes(input, hx or (), self.weight_ih.shape[-1], self.weight_hh.shape[-1])
        if hx is None:
            sizes.check_cell(self)
        biases = [] if self.bias_ih is None else [self.bias_ih, self.bias_hh]
        options = Options(label, cell_name, backend=self.backend)
        return _Step(options, [self.weight_ih, self.weight_hh, *biases], input, hx)


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
        return self._step(f"rnn_{self.nonlinearity}", input, None if hx is None else (hx,))[0]


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
        return self._step("gru", input, None if hx is None else (hx,))[0]


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
        h, c = self._step("lstm", input, None if hx is None else tuple(hx))
        return h, c
