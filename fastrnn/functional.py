"""Stateless rnn, gru and lstm; `torch.func.functional_call` on a module does the same."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks
from fastrnn.binding.bind import results
from fastrnn.binding.checked import Weights
from fastrnn.binding.configuration import Configuration
from fastrnn.cells import projection
from fastrnn.lengths import Lengths

__all__ = ["gru", "lstm", "rnn"]


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Weights,
    *,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
    recompute: bool = False,
    backend: str | None = None,
) -> tuple[Any, ...]:
    """The Elman network of `fastrnn.RNN`, stateless; `nonlinearity` is "tanh" or "relu". Else as `lstm`.

    Raises:
        ValueError: besides what `lstm` raises, for an unknown nonlinearity.

    Example::

        >>> import torch, fastrnn
        >>> module = fastrnn.RNN(3, 4)
        >>> output, hn = fastrnn.functional.rnn(torch.zeros(5, 2, 3), None, module.all_weights)
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    configuration = Configuration(
        "RNN", f"rnn_{nonlinearity}", bidirectional, batch_first, dropout, training, recompute, backend
    )
    output, *states = _checked_results(configuration, weights, input, hx, lengths, resets, return_states)
    return output, *(h for (h,) in states)


def gru(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Weights,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
    recompute: bool = False,
    backend: str | None = None,
) -> tuple[Any, ...]:
    """The gated recurrent units of `fastrnn.GRU`, stateless. Arguments and errors as `lstm`, with hx a tensor.

    Example::

        >>> import torch, fastrnn
        >>> module = fastrnn.GRU(3, 4)
        >>> output, hn = fastrnn.functional.gru(torch.zeros(5, 2, 3), None, module.all_weights)
    """
    configuration = Configuration("GRU", "gru", bidirectional, batch_first, dropout, training, recompute, backend)
    output, *states = _checked_results(configuration, weights, input, hx, lengths, resets, return_states)
    return output, *(h for (h,) in states)


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Weights,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
    recompute: bool = False,
    backend: str | None = None,
) -> tuple[Any, ...]:
    """The long short-term memory of `fastrnn.LSTM`, stateless.

    Args:
        input: (T, B, I), (B, T, I) with `batch_first`, (T, I) unbatched, or a PackedSequence; floating point.
        hx: (h0, c0), each (layers·directions, B, P or H) and (layers·directions, B, H); zeros if None.
        weights: for each layer and direction, in the order of `module.all_weights`: weight_ih (4H, I),
            weight_hh (4H, P or H), or all by as many heads (N, 4D, D), then bias_ih and bias_hh (4H,) if any, then
            weight_hr (P, H) if any.
        bidirectional: whether `weights` alternate between the forward and the reverse direction.
        batch_first: whether batch comes before time in input, output and resets.
        dropout: probability of dropping an element of each layer's output but the last's, if `training`.
        lengths: (B,) integers, as a tensor, list, tuple or NumPy array: see `fastrnn.LSTM`.
        resets: bool, (T, B), (B, T) with `batch_first`, or (T,): see `fastrnn.LSTM`.
        return_states: whether the states of every step are returned, too: see `fastrnn.LSTM`.
        recompute: whether backward computes the gates again instead of keeping them from the forward.
        backend: "auto", "numba", "triton", "cuda", "aten" or "reference"; None for `use_backend`'s or the
            environment's.

    Returns:
        output as the input was laid out, (…, directions·P or directions·H), and (hn, cn) as hx; with `return_states`
        a third, (h, c).

    Raises:
        ValueError, RuntimeError, TypeError: as torch.nn.LSTM for the same mistakes, and for shapes, dtypes or devices
            of the other arguments; RuntimeError where the named backend cannot serve the call.

    Example::

        >>> import torch, fastrnn
        >>> module = fastrnn.LSTM(3, 4)
        >>> x = torch.zeros(5, 2, 3)
        >>> output, (hn, cn) = fastrnn.functional.lstm(x, None, module.all_weights)
        >>> torch.equal(output, module(x)[0])
        True
    """
    configuration = Configuration("LSTM", "lstm", bidirectional, batch_first, dropout, training, recompute, backend)
    return _checked_results(configuration, weights, input, hx, lengths, resets, return_states)


def _checked_results(configuration: Configuration, weights: Weights, *arguments: Any) -> tuple[Any, ...]:
    """`results`, after a check that a module's own parameters do not need."""
    may_project = configuration.cell_name in projection.CELLS
    checks.weight_counts(configuration.operator, weights, configuration.directions, projection=may_project)
    return results(configuration, weights, *arguments)
