"""The base of RNN, GRU and LSTM: torch.nn's constructor and parameters, fastrnn's options and calls.

Parameters are looked up by name at every call, so that parametrizations, pruning, weight norm and
`torch.func.functional_call` take effect. The names are those of `_flat_weights_names`, by which torch.nn's forward
goes; as there, `_all_weights` says what `all_weights` shows and nothing else. `_flat_weights` is not read.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import checks, heads, sizes
from fastrnn.backends import check_name
from fastrnn.binding import door
from fastrnn.binding.checked import Weights
from fastrnn.binding.configuration import Configuration
from fastrnn.cells import CELLS
from fastrnn.lengths import Lengths
from fastrnn.module import Module, watch_of


class Layers(Module, nn.RNNBase):
    """What the three modules share: `nn.RNNBase`'s constructor and parameters, fastrnn's options and forward."""

    _label: str
    """the class's name, for messages"""
    _cell_name: Any
    """of what it computes, as in `CELLS`"""
    _one_state = True
    """whether its cell has no state but h, so that hx is a tensor"""
    num_heads: int = 1
    recurrent_dropout: float = 0.0
    _attributes = staticmethod(
        attrgetter(
            "mode",
            "input_size",
            "hidden_size",
            "num_layers",
            "bias",
            "bidirectional",
            "proj_size",
            "batch_first",
            "dropout",
            "training",
            "num_heads",
            "recurrent_dropout",
            "recompute",
            "prepacked",
            "prepacked_weights",
            "_flat_weights_names",
        )
    )
    """All that a call depends on beside its arguments, the backend and the parameters; see `binding.memory`."""

    def _construct(
        self,
        *args: Any,
        num_heads: int = 1,
        recurrent_dropout: float = 0.0,
        backend: str | None = None,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        if "proj_size" in kwargs and self._label != "LSTM":
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        heads.check(num_heads)
        checks.recurrent_dropout(recurrent_dropout)
        self.num_heads = num_heads  # torch's constructor calls methods that look at it
        super().__init__(*self._mode_and(args, kwargs), **kwargs)
        self.backend = backend and check_name(backend)
        self.recompute, self.recurrent_dropout = recompute, float(recurrent_dropout)
        if num_heads > 1:
            self._make_heads()

    def _make_heads(self) -> None:
        """In place of the recurrent weights that torch's constructor made, (G·H, H)."""
        width = heads.width(self.num_heads, self.hidden_size)
        if self.proj_size:
            raise ValueError(
                "proj_size must be 0 where num_heads is greater than 1, "
                f"got proj_size={self.proj_size} and num_heads={self.num_heads}"
            )
        for name in self._flat_weights_names:
            if name.startswith("weight_hh"):
                whole = getattr(self, name)
                by_head = whole.new_empty(self.num_heads, whole.shape[0] // self.num_heads, width)
                setattr(self, name, nn.Parameter(by_head))
        self.reset_parameters()

    def _mode_and(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """`nn.RNNBase`'s positional arguments: the mode, and those that the module was given."""
        return self._label, *args

    def reset_parameters(self) -> None:
        """Gives the parameters their first values again: torch.nn's, but by heads `weight_hh` within ±1/√D."""
        if self.num_heads == 1:
            super().reset_parameters()
            return
        width = heads.width(self.num_heads, self.hidden_size)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                bound = (width if "weight_hh" in name else self.hidden_size) ** -0.5
                parameter.uniform_(-bound, bound)

    def flatten_parameters(self) -> None:
        """torch's, which brings weights together on a GPU for cuDNN, which has no heads."""
        if self.num_heads == 1:
            super().flatten_parameters()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if len({w.untyped_storage()._cdata for w in self._flat_weights if isinstance(w, Tensor)}) > 1:
            self.flatten_parameters()  # those of a deep copy lie apart

    def _names(self) -> list[list[str]]:
        """Of the parameters of each layer and direction."""
        names, each = self._flat_weights_names, sizes.parameters_each(self, CELLS[self._cell_name])
        return [names[first : first + each] for first in range(0, len(names), each)]

    def _weights(self) -> Weights:
        return [[getattr(self, name) for name in names] for names in self._names()]

    def _checked_weights(self, input: Any, hx: Any) -> Weights:
        """Raises where attributes do not fit the parameters, or the arguments them."""
        checks.recurrent_dropout(self.recurrent_dropout)
        weights = self._weights()
        sizes.check(self, CELLS[self._cell_name], weights, input, hx)
        return weights

    def _configuration(self) -> Configuration:
        return Configuration(
            self._label,
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

    def _run(
        self, input: Any, hx: Any, lengths: Lengths | None, resets: Tensor | None, return_states: bool
    ) -> tuple[Any, ...]:
        states = (hx,) if hx is not None and self._one_state else hx
        watch = watch_of(self)
        return door.call(self, input, hx, states, lengths, resets, return_states, watch)
