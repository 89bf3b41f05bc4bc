"""A module's sizes against its parameters: attributes may have been changed after construction.

torch.nn computes what the attributes say, and complains where the parameters do not fit them. fastrnn goes by the
parameters, so that it has to look whether the attributes say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks
from fastrnn.cells import Cell, projection
from fastrnn.cells.weights import heads


def parameters_each(module: nn.RNNBase, cell: Cell) -> int:
    """How many parameters the attributes give to a layer and direction: weights, biases, and an LSTM's projection."""
    return (4 if module.bias else 2) + (module.proj_size > 0 and cell.name in projection.CELLS)


def check(
    module: nn.RNNBase,
    cell: Cell,
    weights: Sequence[Sequence[Tensor]],
    input: Any,
    hx: Tensor | Sequence[Tensor] | None,
) -> None:
    """Raises where the attributes of a module of layers do not say what its parameters are.

    Args:
        module, cell: of which class the module is, and what it computes.
        weights: of each layer and direction, as many as `parameters_each` says, the last maybe fewer.
        input, hx: what the module was called with, which has not been checked.

    Raises:
        ValueError, RuntimeError: as torch.nn, where it complains on purpose, with its words.
    """
    first, groups = weights[0], module.num_layers * (2 if module.bidirectional else 1)
    if (
        len(weights) == groups
        and len(weights[-1]) == parameters_each(module, cell)
        and first[0].shape == (len(cell.x_gates) * module.hidden_size, module.input_size)
        and module.proj_size == (first[-1].shape[0] if len(first) % 2 else 0)
        and module.num_heads == heads(first[1])
        and (0 <= module.dropout <= 1 or not module.training or module.num_layers == 1)
    ):
        return
    if not isinstance(input, (Tensor, PackedSequence)):
        return  # which is refused later
    _check_arguments(module, cell, input, hx)
    each, count = parameters_each(module, cell), sum(map(len, weights))
    if count % each:
        raise RuntimeError("got an incorrect number of RNN parameters")
    if module.bidirectional and count // each % 2:
        raise RuntimeError("Odd number of params or hiddens given to a bidirectional RNN")
    if count // each != groups:
        raise RuntimeError("Expected more weights in stacked_rnn")
    if not 0 <= module.dropout <= 1:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {module.dropout:g}")
    named = ["input_size", "hidden_size", "proj_size", *["num_heads"] * (module.num_heads != heads(first[1]))]
    *others, last = [f"{name}={getattr(module, name)}" for name in named]
    sizes = f"{', '.join(others)} and {last}"
    shapes = [tuple(tensor.shape) for tensor in first]
    raise RuntimeError(
        f"{type(module).__name__}: {sizes} are not the sizes of the parameters, which begin with {shapes}"
    )


def _check_arguments(
    module: nn.RNNBase, cell: Cell, input: Tensor | PackedSequence, hx: Tensor | Sequence[Tensor] | None
) -> None:
    """Raises what torch.nn raises of them before it looks at the parameters."""
    label = cell.name.split("_")[0].upper()
    x, batch_sizes = (input.data, input.batch_sizes) if isinstance(input, PackedSequence) else (input, None)
    states: list[Tensor] = []
    if batch_sizes is None:
        checks.layer_input(label, x)
    if hx is not None:
        checks.count_of_states(label, hx, cell.states)
        states = [hx] if isinstance(hx, Tensor) else list(hx)
        if batch_sizes is None:
            checks.state_dims(x, states)
    if batch_sizes is None and x.dim() == 2:
        x, states = x.unsqueeze(0 if module.batch_first else 1), [state.unsqueeze(1) for state in states]
    module.check_input(x, batch_sizes)
    count, batch, width = module.get_expected_hidden_size(x, batch_sizes)
    others = [(count, batch, module.hidden_size)] * (len(cell.states) - 1)
    expected = [(count, batch, width), *others]
    if not states:  # what torch.nn begins with is of other sizes where `proj_size` is of no use
        first = expected[0] if cell.name in projection.CELLS else (count, batch, module.hidden_size)
        states = [torch.empty(shape, device="meta") for shape in (first, *others)]
    checks.state_sizes(states, expected)


def check_cell(cell: nn.RNNCellBase, w_hh: Tensor) -> None:
    """Raises, as torch.nn, where the zeros that a cell begins with, when it is given no states, do not fit `weight_hh`.

    Nothing else that a cell computes depends on its attributes.
    """
    expected = w_hh.shape[-1]
    if cell.hidden_size != expected:
        raise RuntimeError(f"hidden0 has inconsistent hidden_size: got {cell.hidden_size}, expected {expected}")
