"""Programs of `torch.export`: fastrnn's operators as torch's core operators, and what inputs are given as."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from fastrnn.backends import products, reference
from fastrnn.backends.layer import Forward, Layer, as_gates, grouped
from fastrnn.cells import Cell
from fastrnn.cells.known import OPERATORS, told

__all__ = ["decompositions"]

MERGES = "torch.export makes one input of inputs that are given the same tensor"


def decompositions(*, unroll: bool = False) -> dict[Any, Callable[..., Forward]]:
    """What turns fastrnn's operators into torch's own in a program of `torch.export`, for runtimes without fastrnn.

    A layer becomes products over all steps and a `torch.ops.higher_order.scan` for each direction, one graph for every
    T >= 1; a layer of one step, as cells are, becomes that step. Lengths, resets, projections and states of every step
    are kept; lengths are no longer looked at, and count as if clamped to [0, T]. Export in evaluation mode and under
    `torch.no_grad()`: else an LSTM's c of every step is computed for a backward that never comes. So run, too: torch
    compiles what may be differentiated.

    Args:
        unroll: whether T steps follow one another instead, without `scan`. T must then be a number.

    Returns:
        A table for `torch.export.ExportedProgram.run_decompositions`, by operator, to be added to torch's own.

    Raises:
        ValueError: while decomposing: `unroll` was asked for and T is not a number.

    Example::

        >>> import torch, fastrnn, fastrnn.export
        >>> gru, x = fastrnn.GRU(3, 4).eval(), torch.randn(5, 2, 3)
        >>> with torch.no_grad():
        ...     program = torch.export.export(gru, (x,), dynamic_shapes=({0: torch.export.Dim("T")},))
        >>> table = torch.export.default_decompositions()
        >>> table.update(fastrnn.export.decompositions())
        >>> program = program.run_decompositions(table)
        >>> any("fastrnn" in str(node.target) for node in program.graph.nodes)
        False
        >>> with torch.no_grad():
        ...     output, hn = program.module()(torch.randn(9, 2, 3))
        >>> output.shape
        torch.Size([9, 2, 4])
    """
    function = partial(_decomposed, unroll)
    return {
        getattr(torch.ops.fastrnn, f"{name}_forward").default: told(cell, function) for name, cell in OPERATORS.items()
    }


def _decomposed(unroll: bool, cell: Cell, *arguments: Any) -> Forward:
    """What a forward operator computes from its arguments, by torch's operators."""
    *of_layer, history, gates, _ = arguments
    layer = Layer(cell.key, *of_layer)
    steps = layer.x.shape[0]
    if isinstance(steps, int) and (unroll or steps <= 1):
        return reference.forward(layer, history=history, gates=gates)
    if unroll:
        raise ValueError(f"{cell.name}: unroll needs a fixed number of steps, and the program is for every T")
    runs = [_scanned(layer, direction, history) for direction in range(layer.directions)]
    states, finals = ([list(parts) for parts in zip(*each, strict=True)] for each in zip(*runs, strict=True))
    dtype, saved = layer.x.dtype, []
    if gates and layer.cell.saved:
        # Computed again: who reads none of it, as in inference, finds none of it left in the program.
        each = [
            products.recomputed_gates(layer, direction, [state[direction] for state in states])
            for direction in range(layer.directions)
        ]
        saved = [as_gates(torch.stack([torch.cat(parts, -1) for parts in each]), layer.gate_dtype)]
    h, *others = [torch.cat(parts, -1) for parts in states]
    return Forward([h.to(dtype), *others], [torch.stack(parts).to(dtype) for parts in finals], saved)


def _scanned(layer: Layer, direction: int, history: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The states of every step (T, B, F), h alone without `history`, and after the last (B, F), in the state dtype."""
    from torch._higher_order_ops.scan import scan_op

    dtype, many = layer.state_dtype, len(layer.states0)
    masks = [products.live_steps(layer), products.cuts(layer, direction)]
    fed = products.inputs_of(layer, direction, dtype)
    over = [products.input_product(layer, direction, dtype), *fed, *(mask for mask in masks if mask is not None)]
    in_time = [part.flip(0) for part in over] if layer.reversed(direction) else over
    one_way = slice(direction, direction + 1)
    biases = layer.biases[2 * direction : 2 * direction + 2]
    mask = [] if layer.recurrent_mask is None else [layer.recurrent_mask[one_way]]
    own_weights = (layer.w_hh[direction], *biases, *layer.extras[one_way], *layer.parameters_of(direction), *mask)
    weights = [w.to(dtype) for w in own_weights]

    # A step views none of the tensors it is given: ExecuTorch 1.5 reads such views from memory that nobody wrote.
    def step(*tensors: Tensor) -> list[Tensor]:
        states, (gx, *rows), (w_hh, *rest) = grouped(tensors, [many, len(in_time), len(weights)])
        counts = [len(biases), len(layer.extras[one_way]), len(layer.cell.parameters), len(mask)]
        of_biases, extras, parameters, of_mask = grouped(rest, counts)
        own = replace(layer, w_hh=[w_hh], biases=of_biases, extras=extras, parameters=parameters)
        own.recurrent_mask = of_mask[0] if mask else None
        each = iter(rows[len(fed) :])
        live, cut = (None if mask is None else next(each) for mask in masks)
        after, outputs, _ = reference.one_step(own, 0, gx, tuple(states), live, cut, tuple(rows[: len(fed)]))
        # What a step hands on and what it gives may not be one tensor.
        return [*after, *(output.clone() for output in (outputs if history else outputs[:1]))]

    states0 = [state[direction].to(dtype).clone() for state in layer.states0]
    results = list(scan_op(step, states0, in_time, tuple(weights)))
    finals, histories = results[:many], results[many:]
    return [y.flip(0) for y in histories] if layer.reversed(direction) else histories, finals


def distinct(examples: Any, weights: Iterable[Tensor]) -> Any:
    """`examples`, with aliases in place of tensors that come a second time or are among `weights`.

    torch.export goes by the tensor, not by the argument: of two inputs that were one tensor, the program reads the last
    for both, and for a weight, the input.
    """
    seen = set(map(id, weights))

    def fresh(tensor: Tensor) -> Tensor:
        if id(tensor) in seen:
            return tensor.detach()
        seen.add(id(tensor))
        return tensor

    return tree_map_only(Tensor, fresh, examples)


def refuse_merged(program: torch.export.ExportedProgram) -> None:
    """Raises ValueError where a program was captured with one tensor as several inputs, of which it reads one."""
    names, examples = program.graph_signature.user_inputs, tree_leaves(program.example_inputs)
    by_tensor: dict[int, list[str]] = {}
    for name, example in zip(names, examples, strict=False):
        if isinstance(example, Tensor) and isinstance(name, str):
            by_tensor.setdefault(id(example), []).append(name)
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    for inputs in by_tensor.values():
        if len(inputs) > 1 and read.intersection(inputs):
            raise ValueError(f"the program's inputs {', '.join(inputs)} are one: {MERGES}; give each a clone() of it")
