"""RNN, GRU, LSTM and their cells: drop-in modules for their torch.nn namesakes.

Constructors, attributes, parameters and initial values are torch's own, inherited from its base classes; the forward
passes are fastrnn's. Parameters are looked up by name at every call, so that parametrizations, pruning, weight norm
and `torch.func.functional_call` take effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks, repeated, stack
from fastrnn.backends import check_name, requested
from fastrnn.prepacking import Prepacking
from fastrnn.prepare import Options, Weights
from fastrnn.remembered import Form
from fastrnn.stack import Watch

_CELL_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_MODES = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu", "LSTM": "lstm", "GRU": "gru"}

watched: dict[nn.Module, Callable[[], Watch]] = {}
"""The modules that `fastrnn.probe` records, and what tells it of a call. Not kept in the modules, which are copied and
pickled."""


def _watch(module: nn.Module) -> Watch | None:
    return watched[module]() if module in watched else None


def _refuse_to_be_scripted(module: nn.Module) -> NoReturn:
    """torch.jit.script asks each module by this name for what it shall compile in its place."""
    raise NotImplementedError(
        f"torch.jit.script cannot compile fastrnn.{type(module).__name__}: use torch.compile or torch.export, or "
        "fastrnn.to_torch(model) for torch.nn's layers, which it can"
    )


class _Layers(Prepacking, nn.RNNBase):
    """What the three modules share: `nn.RNNBase`'s constructor and parameters, fastrnn's options and forward."""

    __prepare_scriptable__ = _refuse_to_be_scripted
    backend: str | None = None
    recompute: bool = False

    def __init__(
        self, mode: str, *args: Any, backend: str | None = None, recompute: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(mode, *args, **kwargs)
        self.backend = backend and check_name(backend)
        self.recompute = recompute

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if len({w.untyped_storage()._cdata for w in self._flat_weights if isinstance(w, Tensor)}) > 1:
            self.flatten_parameters()  # those of a deep copy lie apart

    def extra_repr(self) -> str:
        options = super().extra_repr()
        if self.backend is not None:
            options += f", backend={self.backend!r}"
        if self.recompute:
            options += ", recompute=True"
        return options + (", prepacked" if self.prepacked else "")

    def _weights(self) -> Weights:
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def _options(self) -> Options:
        return Options(
            self.mode.split("_")[0],
            _MODES[self.mode],
            self.bidirectional,
            self.batch_first,
            self.dropout,
            self.training,
            self.recompute,
            self.backend,
        )

    def _run(
        self, input: Any, hx: Any, lengths: Tensor | None, resets: Tensor | None, return_states: bool
    ) -> tuple[Any, ...]:
        watch = _watch(self)
        if return_states or watch is not None:
            arguments = (self._options(), self._weights(), input, hx, lengths, resets)
            return stack.recurrent(*arguments, return_states, watch)
        repeats = lengths is None and resets is None and self._is_plain() and repeated.is_possible(input)
        if repeats:
            form = Form(
                _MODES[self.mode],
                1 + self.bidirectional,
                self.batch_first,
                training=self.training,
                backend=requested(self.backend),
                prepacked=self.prepacked,
            )
            before = hx if hx is None or self.mode == "LSTM" else (hx,)
            known = repeated.call(self, form, input, before)
            if known is not None:
                return known
        output, finals = stack.recurrent(self._options(), self._weights(), input, hx, lengths, resets)
        if repeats:
            repeated.remember(self, form, self._all_weights, input, before, finals[0])
        return output, finals

    def _is_plain(self) -> bool:
        """Whether a call computes layers without projections, keeps all gates, and does no more than layers."""
        return not (self.proj_size or self.recompute or (self.dropout and self.training and self.num_layers > 1))


def _without_tuples(results: tuple[Any, ...]) -> tuple[Any, ...]:
    """(output, (hn,)) -> (output, hn), and (output, (hn,), (h,)) -> (output, hn, h)."""
    if len(results) == 2:
        output, (hn,) = results
        return output, hn
    output, (hn,), (h,) = results
    return output, hn, h


class RNN(_Layers):
    """A stack of Elman networks, as `torch.nn.RNN`: `h' = φ(x W_ihᵀ + b_ih + h W_hhᵀ + b_hh)`, φ tanh or relu.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype:
            as `torch.nn.RNN`, in the same order.
        backend, recompute: see `LSTM`.

    `forward(input, hx=None, *, lengths=None, resets=None, return_states=False)` returns `output, hn`, and h as a third
    with `return_states`; everything else is as in `LSTM`.

    Source: Elman, "Finding structure in time" (1990); the documentation of torch.nn.RNN.

    Example::

        >>> import torch, fastrnn
        >>> rnn = fastrnn.RNN(10, 20, num_layers=2, nonlinearity="relu")
        >>> output, hn = rnn(torch.randn(5, 3, 10))
        >>> output.shape, hn.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, **kwargs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        return _without_tuples(self._run(input, hx, lengths, resets, return_states))


class GRU(_Layers):
    """A stack of gated recurrent units, as `torch.nn.GRU`: the reset gate is applied after the product.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as `torch.nn.GRU`, in the same order.
        backend, recompute: see `LSTM`.

    `forward(input, hx=None, *, lengths=None, resets=None, return_states=False)` returns `output, hn`, and h as a third
    with `return_states`; everything else is as in `LSTM`.

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder" (2014), in the variant of cuDNN;
    the documentation of torch.nn.GRU. `docs/equations.md` has the equations and their derivatives.

    Example::

        >>> import torch, fastrnn
        >>> gru = fastrnn.GRU(10, 20, bidirectional=True)
        >>> output, hn = gru(torch.randn(5, 3, 10))
        >>> output.shape, hn.shape
        (torch.Size([5, 3, 40]), torch.Size([2, 3, 20]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        return _without_tuples(self._run(input, hx, lengths, resets, return_states))


class LSTM(_Layers):
    """A stack of long short-term memories, as `torch.nn.LSTM`, with projections if `proj_size` is given.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype:
            as `torch.nn.LSTM`, in the same order.
        backend: "auto", "numba", "triton", "cuda", "aten" or "reference"; None (the default) for the one of
            `fastrnn.use_backend`, else of the environment variable FASTRNN_BACKEND, else "auto".
        recompute: whether backward computes the gates again, from the input and the states, instead of keeping them
            from the forward pass: less memory for one more product of the forward's size.

    `forward(input, hx=None, *, lengths=None, resets=None, return_states=False)`:
        input: (T, B, I), (B, T, I) with `batch_first`, (T, I) unbatched, or a PackedSequence.
        hx: (h0, c0), (layers·directions, B, P or H) and (layers·directions, B, H), or without B; zeros if None.
        lengths: (B,) integers in [0, T] on the input's device, in any order; () unbatched. Steps at t >= length leave
            the state unchanged and give zero output, and what the input holds there reaches no result. On CUDA they
            are clamped to [0, T], since looking at them would synchronise.
        resets: bool (T, B), (B, T) with `batch_first`, (T,) unbatched; with a PackedSequence padded and in the
            caller's order. True at t cuts the sequence before step t: forward, the state is zero before step t; in
            reverse, it is zero between steps t and t - 1.
        return_states: whether the states of every step, layer and direction are returned, with gradients.

    Returns `output, (hn, cn)`: the output as the input was laid out, (T, B, directions·P or directions·H), and the
    states after each sequence's last step. T = 0 gives empty output and hx back, where torch raises. Under autocast
    everything is computed from, and returned in, the autocast dtype; states and sums are kept in float32.

    With `return_states` it returns `output, (hn, cn), (h, c)`: h is (layers·directions, T, B, P or H) and c
    (layers·directions, T, B, H), (layers·directions, B, T, ·) with `batch_first`, (layers·directions, T, ·) unbatched,
    so that `h[k]` goes with `hn[k]`; padded and in the caller's order for a PackedSequence. At t they hold the state
    after the step that reads the input of t, in either direction, before dropout, and zero at t >= length. They have
    the output's dtype: c is kept in float32 and rounded once, as cn is. Torch's own kernels cannot give them: "auto"
    passes over "aten", and "aten" by name raises, but under torch.func's transforms, where the reference serves it.

    Raises:
        ValueError, RuntimeError: as torch.nn.LSTM for wrong dimensions, sizes and dtypes; for lengths or resets of
            another shape, dtype or device, or lengths out of range on the CPU; for a backend that cannot serve the
            call, with the reason.

    Source: Hochreiter and Schmidhuber, "Long short-term memory" (1997); Gers et al., "Learning to forget" (2000);
    Sak et al., "Long short-term memory recurrent neural network architectures" (2014) for projections; the
    documentation of torch.nn.LSTM. `docs/equations.md` has the equations and their derivatives.

    Example::

        >>> import torch, fastrnn
        >>> lstm = fastrnn.LSTM(10, 20, batch_first=True)
        >>> x, lengths = torch.randn(3, 5, 10), torch.tensor([5, 2, 0])
        >>> output, (hn, cn) = lstm(x, lengths=lengths)
        >>> output.shape, hn.shape
        (torch.Size([3, 5, 20]), torch.Size([1, 3, 20]))
        >>> torch.equal(hn[0, 1], output[1, 1])
        True
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        return self._run(input, hx, lengths, resets, return_states)


class _Cell(Prepacking, nn.RNNCellBase):
    """What the three cells share: `nn.RNNCellBase`'s parameters, and one step through the same operators."""

    __prepare_scriptable__ = _refuse_to_be_scripted
    backend: str | None = None

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, chunks: int, device: Any, dtype: Any, backend: str | None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, chunks, device=device, dtype=dtype)
        self.backend = backend and check_name(backend)

    def extra_repr(self) -> str:
        options = super().extra_repr()
        if self.backend is not None:
            options += f", backend={self.backend!r}"
        return options + (", prepacked" if self.prepacked else "")

    def _step(self, cell_name: str, input: Tensor, hx: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        watch = _watch(self)
        repeats = watch is None and not torch.is_grad_enabled() and repeated.is_possible(input)
        if repeats:
            form = Form(cell_name, cell=True, backend=requested(self.backend), prepacked=self.prepacked)
            known = repeated.call(self, form, input, hx)
            if known is not None:
                return known[1]
        label = f"{cell_name.split('_')[0].upper()}Cell"
        checks.cell_input(label, input, hx)
        given, given_hx, batched = input, hx, input.dim() == 2
        if not batched:
            input, hx = input.unsqueeze(0), hx and tuple(state.unsqueeze(0) for state in hx)
        checks.cell_sizes(input, hx or (), self.input_size, self.hidden_size)
        biases = [] if self.bias_ih is None else [self.bias_ih, self.bias_hh]
        options = Options(label, cell_name, backend=self.backend)
        after = stack.step(options, [self.weight_ih, self.weight_hh, *biases], input, hx, watch)
        after = after if batched else tuple(state.squeeze(0) for state in after)
        if repeats:
            names = [_CELL_PARAMETERS[: 2 + len(biases)]]
            repeated.remember(self, form, names, given, given_hx, after[0])
        return after


class RNNCell(_Cell):
    """One step of an Elman network, as `torch.nn.RNNCell`; see `RNN`.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: as `torch.nn.RNNCell`, in the same order.
        backend: see `LSTM`.

    `forward(input, hx=None)` takes (B, I) and (B, H), or (I,) and (H,), and returns the next h.

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
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 1, device, dtype, backend)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._step(f"rnn_{self.nonlinearity}", input, None if hx is None else (hx,))[0]


class GRUCell(_Cell):
    """One step of gated recurrent units, as `torch.nn.GRUCell`; see `GRU`.

    Args:
        input_size, hidden_size, bias, device, dtype: as `torch.nn.GRUCell`, in the same order.
        backend: see `LSTM`.

    `forward(input, hx=None)` takes (B, I) and (B, H), or (I,) and (H,), and returns the next h.

    Raises:
        ValueError, RuntimeError: as torch.nn.GRUCell for the same mistakes.

    Example::

        >>> import torch, fastrnn
        >>> fastrnn.GRUCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype, backend)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._step("gru", input, None if hx is None else (hx,))[0]


class LSTMCell(_Cell):
    """One step of a long short-term memory, as `torch.nn.LSTMCell`; see `LSTM`.

    Args:
        input_size, hidden_size, bias, device, dtype: as `torch.nn.LSTMCell`, in the same order.
        backend: see `LSTM`.

    `forward(input, hx=None)` takes (B, I) and a pair of (B, H), or (I,) and a pair of (H,); returns the next (h, c).

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
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype, backend)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if hx is not None:
            checks.count_of_states("LSTMCell", hx, ("h", "c"))
        h, c = self._step("lstm", input, None if hx is None else tuple(hx))
        return h, c
