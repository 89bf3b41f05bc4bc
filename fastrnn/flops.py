"""How many operations the operators take, for `torch.utils.flop_counter.FlopCounterMode`.

What is counted is products, as torch counts them: two operations for each number of a weight, row and step; and of a
padded batch every step, whatever the lengths. Calls that torch's kernels would serve go to the operators meanwhile, but
where "aten" was asked for by name: torch counts nothing for an LSTM's.

Importing torch.utils.flop_counter imports Triton, so that it is left to who counts. A counter copies torch's formulas
when it is made, maybe before it meets the first operator: hence counters at work are told, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fastrnn.backends.layer import ARGUMENTS
from fastrnn.cells import Cell
from fastrnn.cells.known import OPERATORS, told

_MODULE = "torch.utils.flop_counter"

Shapes = Sequence[Sequence[int]]


def of_forward(cell: Cell, *arguments: Any, out_shape: Any = None) -> int:
    """Of a forward operator, from its arguments, tensors as shapes: a product with each weight in every step."""
    given = _by_name(arguments)
    return _product(given["x"], given["w_ih"], given["w_hh"], given["extras"])


def of_backward(
    cell: Cell, d_states: Any, d_finals: Any, states: Any, saved: Shapes, *others: Any, out_shape: Any = None
) -> int:
    """Of a backward operator, from its arguments, tensors as shapes.

    The states' gradients take a product with w_hh, and w_hr, in every step, those of x one with w_ih, those of weights
    one each, and gates that were not kept those of the forward again.
    """
    *of_layer, need_x, need_weights, _ = others
    given = _by_name(of_layer)
    x, w_ih, w_hh, extras = given["x"], given["w_ih"], given["w_hh"], given["extras"]
    count = _product(x, w_hh, extras)
    if need_x:
        count += _product(x, w_ih)
    if need_weights:
        count += _product(x, w_ih, w_hh, extras)
    if cell.saved and not saved:
        count += _product(x, w_ih, w_hh)
    return count


def _by_name(arguments: Sequence[Any]) -> dict[str, Any]:
    """A layer's, which come first."""
    return {row.name: value for row, value in zip(ARGUMENTS, arguments, strict=False)}


def _product(x: Sequence[int], *weights: Shapes) -> int:
    """With each weight, of as many rows as x (T, B, I) has."""
    return 2 * x[0] * x[1] * sum(prod(shape) for group in weights for shape in group)


def are_counted() -> bool:
    """Whether a FlopCounterMode is at work, in this thread."""
    return any(True for _ in _registries())


def tell_counters() -> None:
    """Gives torch, and the FlopCounterModes that are at work, the formulas."""
    for registry in _registries():
        formulas = sys.modules[_MODULE].flop_registry
        for name, cell in OPERATORS.items():
            for direction, formula in (("forward", of_forward), ("backward", of_backward)):
                operator = getattr(torch.ops.fastrnn, f"{name}_{direction}")
                if operator not in formulas:
                    _register(operator, told(cell, formula))
                registry.setdefault(operator, formulas[operator])


def _register(operator: Any, formula: Callable[..., int]) -> None:
    sys.modules[_MODULE].register_flop_formula(operator)(formula)


def _registries() -> Iterator[dict[Any, Any]]:
    """The formulas of each FlopCounterMode at work."""
    module = sys.modules.get(_MODULE)
    if module is None or torch._C._len_torch_dispatch_stack() == 0:
        return
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, module._FlopCounterMode):
            yield mode.counter.flop_registry
