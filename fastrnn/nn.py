"""RNN, GRU and LSTM, and, from `nn_cells`, their cells: drop-in modules for their torch.nn namesakes.

Constructors, attributes, parameters and initial values are torch's own, inherited from its base classes; the forward
passes are fastrnn's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.types import Device

from fastrnn.lengths import Lengths
from fastrnn.nn_cells import GRUCell as GRUCell
from fastrnn.nn_cells import LSTMCell as LSTMCell
from fastrnn.nn_cells import RNNCell as RNNCell
from fastrnn.nn_layers import Layers

Given = ParamSpec("Given")
Input = TypeVar("Input", Tensor, PackedSequence)

_MODES = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


def _refused_as_by_torch(signature: Callable[Given, None]) -> Callable[Given, None]:
    """A constructor with this signature that does not go by it: torch's is given everything, and its words are wanted
    where something is wrong."""

    @wraps(signature)
    def __init__(self: Layers, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        self._construct(*args, **kwargs)

    __init__.__doc__ = "See the class."
    return __init__  # type: ignore[return-value]


def _without_tuples(results: tuple[Any, ...]) -> tuple[Any, ...]:
    """(output, (hn,)) -> (output, hn), and (output, (hn,), (h,)) -> (output, hn, h)."""
    if len(results) == 2:
        output, (hn,) = results
        return output, hn
    output, (hn,), (h,) = results
    return output, hn, h


class RNN(Layers):
    """A stack of Elman networks, as `torch.nn.RNN`: `h' = φ(x W_ihᵀ + b_ih + h W_hhᵀ + b_hh)`, φ tanh or relu.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype:
            as `torch.nn.RNN`, in the same order.
        num_heads, recurrent_dropout, backend, recompute: see `LSTM`.

    Called with `(input, hx=None, *, lengths=None, resets=None, return_states=False)` it returns `output, hn`, and h as
    a third with `return_states`: input (T, B, I), hx and hn (layers·directions, B, H), output (T, B, directions·H), h
    (layers·directions, T, B, H). Everything else is as in `LSTM`, its parameters, too: `weight_ih_l{k}` (H, I) and
    `weight_hh_l{k}` (H, H).

    Source: Elman, "Finding structure in time" (1990); the documentation of torch.nn.RNN.

    Example::

        >>> import torch, fastrnn
        >>> rnn = fastrnn.RNN(10, 20, num_layers=2, nonlinearity="relu")
        >>> output, hn = rnn(torch.randn(5, 3, 10))
        >>> output.shape, hn.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    _label = "RNN"

    @_refused_as_by_torch
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
        num_heads: int = 1,
        recurrent_dropout: float = 0.0,
        backend: str | None = None,
        recompute: bool = False,
    ) -> None: ...

    def _mode_and(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity
        return f"RNN_{nonlinearity.upper()}", *args

    @property
    def _cell_name(self) -> str:
        if self.mode not in _MODES:
            raise AssertionError(f"mode must be RNN_TANH or RNN_RELU, got {self.mode}")
        return _MODES[self.mode]

    @overload
    def forward(
        self, input: Input, hx: Tensor | None = None, *, lengths: Lengths | None = None, resets: Tensor | None = None
    ) -> tuple[Input, Tensor]: ...

    @overload
    def forward(
        self,
        input: Input,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        return_states: bool,
    ) -> tuple[Any, ...]: ...

    # Written out in each class, as cells' constructors are.
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        """`output, hn`, or with `return_states` `output, hn, h`; see the class."""
        return _without_tuples(self._run(input, hx, lengths, resets, return_states))


class GRU(Layers):
    """A stack of gated recurrent units, as `torch.nn.GRU`: the reset gate is applied after the product.

    A step computes, for each unit, with x.r for the gate r's share of W_ih x + b_ih and u.r for that of W_hh h + b_hh::

        r, z = sigmoid(x.r + u.r), sigmoid(x.z + u.z)
        n = tanh(x.n + r u.n)
        h' = (1 - z) n + z h

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as `torch.nn.GRU`, in the same order.
        num_heads, recurrent_dropout, backend, recompute: see `LSTM`.

    Called with `(input, hx=None, *, lengths=None, resets=None, return_states=False)` it returns `output, hn`, and h as
    a third with `return_states`: input (T, B, I), hx and hn (layers·directions, B, H), output (T, B, directions·H), h
    (layers·directions, T, B, H). Everything else is as in `LSTM`, its parameters, too: three gates in the order r, z, n
    make `weight_ih_l{k}` (3H, I) and `weight_hh_l{k}` (3H, H).

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder" (2014), in the variant of cuDNN;
    the documentation of torch.nn.GRU. `docs/equations.md` has what surrounds the step, and the derivatives.

    Example::

        >>> import torch, fastrnn
        >>> gru = fastrnn.GRU(10, 20, bidirectional=True)
        >>> output, hn = gru(torch.randn(5, 3, 10))
        >>> output.shape, hn.shape
        (torch.Size([5, 3, 40]), torch.Size([2, 3, 20]))
    """

    _label, _cell_name = "GRU", "gru"

    @_refused_as_by_torch
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
        num_heads: int = 1,
        recurrent_dropout: float = 0.0,
        backend: str | None = None,
        recompute: bool = False,
    ) -> None: ...

    @overload
    def forward(
        self, input: Input, hx: Tensor | None = None, *, lengths: Lengths | None = None, resets: Tensor | None = None
    ) -> tuple[Input, Tensor]: ...

    @overload
    def forward(
        self,
        input: Input,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        return_states: bool,
    ) -> tuple[Any, ...]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        """`output, hn`, or with `return_states` `output, hn, h`; see the class."""
        return _without_tuples(self._run(input, hx, lengths, resets, return_states))


class LSTM(Layers):
    """A stack of long short-term memories, as `torch.nn.LSTM`, with projections if `proj_size` is given.

    A step computes, for each unit, with x.i for the gate i's share of W_ih x + b_ih and u.i for that of W_hh h + b_hh::

        i, f, o = sigmoid(x.i + u.i), sigmoid(x.f + u.f), sigmoid(x.o + u.o)
        g = tanh(x.g + u.g)
        c' = f c + i g
        h' = o tanh(c'), with projections W_hr (o tanh(c'))

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype:
            as `torch.nn.LSTM`, in the same order.
        num_heads: N, that of blocks of units which see one another's states: with N > 1 `weight_hh_l{k}` is
            (N, 4D, D), D = H / N, each head's rows gate by gate, in place of (4H, H), and no state reaches the gates of
            another head within a layer. It begins within ±1/√D, all else within ±1/√H as with one head, so that gates
            begin as large as there. Not with `proj_size`.
        recurrent_dropout: the probability, in training, that a unit's h is zero where it enters the recurrent product:
            one mask, (layers·directions, B, P or H), for all steps of a call and all gates, drawn by torch's generator
            of the input's device, and what is left is scaled by 1/(1 - p). Where a cell reads h itself, as the GRU in
            z h, it reads all of it. The kernels of "numba" and "triton" have it, and the reference;
            see `docs/equations.md#recurrent-dropout`.
        backend: "auto", "numba", "triton", "cuda", "aten" or "reference"; None (the default) for the one of
            `fastrnn.use_backend`, else of the environment variable FASTRNN_BACKEND, else "auto".
        recompute: whether backward computes the gates again, from the input and the states, instead of keeping them
            from the forward pass: less memory for one more product of the forward's size.

    Called with `(input, hx=None, *, lengths=None, resets=None, return_states=False)`.

    Inputs:
        input: (T, B, I), (B, T, I) with `batch_first`, (T, I) unbatched, or a PackedSequence.
        hx: (h0, c0), (layers·directions, B, P or H) and (layers·directions, B, H), or without B; zeros if None.
        lengths: (B,) integers in [0, T], in any order; () or an int unbatched. A tensor on the input's device or on the
            CPU, a list, a tuple or a NumPy array. Steps at t >= length leave the state unchanged and give zero output,
            and what the input holds there reaches no result. A tensor on CUDA is clamped to [0, T], since looking at it
            would synchronise.
        resets: bool (T, B), (B, T) with `batch_first`, (T,) unbatched; with a PackedSequence padded and in the
            caller's order. True at t cuts the sequence before step t: forward, the state is zero before step t; in
            reverse, it is zero between steps t and t - 1.
        return_states: whether the states of every step, layer and direction are returned, with gradients.

    It returns `output, (hn, cn)`: the output as the input was laid out, (T, B, directions·P or directions·H), and the
    states after each sequence's last step. T = 0 gives empty output and hx back, where torch raises. Under autocast
    everything is computed from, and returned in, the autocast dtype; states and sums are kept in float32.

    With `return_states` it returns `output, (hn, cn), (h, c)`: h is (layers·directions, T, B, P or H) and c
    (layers·directions, T, B, H), (layers·directions, B, T, ·) with `batch_first`, (layers·directions, T, ·) unbatched,
    so that `h[k]` goes with `hn[k]`; padded and in the caller's order for a PackedSequence. At t they hold the state
    after the step that reads the input of t, in either direction, before dropout, and zero at t >= length. They have
    the output's dtype: c is kept in float32 and rounded once, as cn is. Torch's own kernels cannot give them: "auto"
    passes over "aten", and "aten" by name raises, but under torch.func's transforms, where the reference serves it.

    Raises:
        ValueError, RuntimeError, TypeError: as torch.nn.LSTM for wrong dimensions, sizes and dtypes; for `num_heads`
            that is no int above 0, does not divide `hidden_size`, or comes with `proj_size`; for a `recurrent_dropout`
            that is no number in [0, 1]; for lengths or resets of
            another type, shape, dtype or device, or lengths out of range on the CPU; for a backend that cannot serve
            the call, with the reason.

    Source: Hochreiter and Schmidhuber, "Long short-term memory" (1997); Gers et al., "Learning to forget" (2000);
    Sak et al., "Long short-term memory recurrent neural network architectures" (2014) for projections; Beck et al.,
    "xLSTM: extended long short-term memory" (2024) for heads; Gal and Ghahramani, "A theoretically grounded application
    of dropout in recurrent neural networks" (2016) for recurrent dropout; the documentation of torch.nn.LSTM.
    `docs/equations.md` has what surrounds the step, and the derivatives.

    Example::

        >>> import torch, fastrnn
        >>> lstm = fastrnn.LSTM(10, 20, batch_first=True)
        >>> output, (hn, cn) = lstm(torch.randn(3, 5, 10), lengths=[5, 2, 0])
        >>> output.shape, hn.shape
        (torch.Size([3, 5, 20]), torch.Size([1, 3, 20]))
        >>> torch.equal(hn[0, 1], output[1, 1])
        True
    """

    _label, _cell_name, _one_state = "LSTM", "lstm", False

    @_refused_as_by_torch
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int = 1,
        recurrent_dropout: float = 0.0,
        backend: str | None = None,
        recompute: bool = False,
    ) -> None: ...

    @overload
    def forward(
        self,
        input: Input,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Input, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: Input,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        return_states: bool,
    ) -> tuple[Any, ...]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        """`output, (hn, cn)`, or with `return_states` `output, (hn, cn), (h, c)`; see the class."""
        return self._run(input, hx, lengths, resets, return_states)
