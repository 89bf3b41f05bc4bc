"""Stateless rnn, gru and lstm: stacks of layers, dropout, packing, batch_first and unbatched input over the operators.

The modules of `fastrnn.nn` are parameters around `recurrent`; `torch.func.functional_call` on a module does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks, ops, packing, transforms
from fastrnn.backends import aten, aten_serves, check_name, products, requested
from fastrnn.backends.call import Call
from fastrnn.backends.layer import Forward, Layer
from fastrnn.cells import CELLS

Weights = Sequence[Sequence[Tensor]]
States = tuple[Tensor, ...]

Watch = Callable[[int, Layer, Forward], None]
"""Is told, while a stack of layers runs, each layer's number, arguments and results, all states' histories included."""


@dataclass(frozen=True)
class Options:
    """What a module is configured with, beside its parameters."""

    label: str
    """the class's name, for messages"""
    cell_name: str
    bidirectional: bool = False
    batch_first: bool = False
    dropout: float = 0.0
    training: bool = False
    recompute: bool = False
    backend: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A checked call, and what turns its time-first, batched output into the caller's layout."""

    call: Call
    backend: str
    finish: Callable[[Tensor, States], tuple[Any, States]]
    lay_out: Callable[[Tensor], Tensor]
    """what does the same for every step of a state, (layers·directions, T, B, F)"""
    dropout: Callable[[Tensor], Tensor]


def recurrent(
    options: Options,
    weights: Weights,
    input: Tensor | PackedSequence,
    hx: Tensor | Sequence[Tensor] | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    return_states: bool = False,
    watch: Watch | None = None,
) -> tuple[Any, ...]:
    """Runs a stack of layers; returns the output as the input was laid out, and the tuple of final states.

    With `return_states`, the tuple of the states of all steps comes third.
    """
    if torch.compiler.is_compiling() and isinstance(input, PackedSequence) and input.sorted_indices is None:
        # Only the data tell how many sequences there are.
        return _outside_graphs(options, weights, input, hx, lengths, resets, return_states, watch)
    prepared = prepare(options, weights, input, hx, lengths, resets)
    if not return_states:
        return prepared.finish(*run(prepared, watch))
    prepared = replace(prepared, call=replace(prepared.call, return_states=True))
    histories: list[list[Tensor]] = []

    def keep(index: int, layer: Layer, result: Forward) -> None:
        histories.append(result.states)
        if watch is not None:
            watch(index, layer, result)

    results = prepared.finish(*run(prepared, keep))
    return *results, tuple(prepared.lay_out(state) for state in _states(prepared.call, histories))


_outside_graphs = _disable_dynamo(recurrent)
"""What a compiler calls without looking into it."""


def _states(call: Call, histories: Sequence[Sequence[Tensor]]) -> States:
    """The states of every step, (layers·directions, T, B, F) each in the call's dtype, from `Forward.states` of each
    layer; zero at t >= length.
    """
    live = products.live_steps(call.layer(0, call.x))

    def of_layer(history: Tensor) -> Tensor:
        if live is not None:
            history = torch.where(live[..., None], history, 0)
        by_direction = torch.unflatten(history.to(call.x.dtype), -1, (call.directions, -1))
        return by_direction.permute(2, 0, 1, 3)

    # A single layer's too: `cat` copies, so that no result shares memory with the output.
    return tuple(torch.cat([of_layer(history) for history in of_state]) for of_state in zip(*histories, strict=True))


def prepare(
    options: Options,
    weights: Weights,
    input: Tensor | PackedSequence,
    hx: Tensor | Sequence[Tensor] | None,
    lengths: Tensor | None,
    resets: Tensor | None,
) -> Prepared:
    """Checks everything and brings it into the layout of `Call`; computes nothing yet."""
    states = _as_states(options, hx)
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError(f"{options.label.lower()}: a PackedSequence has its own lengths, lengths must be None")
        return _prepare_packed(options, weights, input, states, resets)
    if not isinstance(input, Tensor):
        raise TypeError(
            f"{options.label.lower()}: input must be a tensor or a PackedSequence, got {type(input).__name__}"
        )
    return _prepare_padded(options, weights, input, states, lengths, resets)


def _as_states(options: Options, hx: Tensor | Sequence[Tensor] | None) -> States | None:
    if hx is None:
        return None
    checks.count_of_states(options.label, hx, CELLS[options.cell_name].states)
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _prepare_padded(
    options: Options,
    weights: Weights,
    input: Tensor,
    states: States | None,
    lengths: Tensor | None,
    resets: Tensor | None,
) -> Prepared:
    checks.layer_input(options.label, input)
    if states is not None:
        checks.state_dims(input, states)
    checks.dtype_and_size(input, weights[0][0])
    batched, batch_first = input.dim() == 3, options.batch_first
    operator = options.label.lower()
    if resets is not None:
        names = ("BT" if batch_first else "TB") if batched else "T"
        checks.resets(operator, resets, tuple(input.shape[:-1]), names, input.device)
        resets = (resets.t() if batch_first else resets) if batched else resets.unsqueeze(1)
    if not batched:
        input, states = input.unsqueeze(1), states and tuple(state.unsqueeze(1) for state in states)
    elif batch_first:
        input = input.transpose(0, 1)
    if lengths is not None:
        checks.lengths(operator, lengths, input.shape[1] if batched else None, input.device)
        lengths = lengths.reshape(-1).to(torch.int64)

    def finish(output: Tensor, finals: States) -> tuple[Tensor, States]:
        if not batched:
            return output.squeeze(1), tuple(final.squeeze(1) for final in finals)
        return output.transpose(0, 1) if batch_first else output, finals

    def lay_out(state: Tensor) -> Tensor:
        if not batched:
            return state.squeeze(2)
        return state.transpose(1, 2) if batch_first else state

    return _prepared(options, weights, input, states, lengths, resets, finish, lay_out)


def _prepare_packed(
    options: Options, weights: Weights, packed: PackedSequence, states: States | None, resets: Tensor | None
) -> Prepared:
    """A packed batch runs padded with lengths, its sequences in their sorted order."""
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    if data.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
    checks.dtype_and_size(data, weights[0][0])
    # A size, where there is one, rather than data: one graph then serves every batch.
    batch = int(batch_sizes[0]) if sorted_indices is None else sorted_indices.shape[0]
    steps, compiled = batch_sizes.shape[0], torch.compiler.is_compiling()
    packed_lengths = (torch.arange(batch, device=batch_sizes.device)[:, None] < batch_sizes).sum(1)

    def pad(rows: Tensor) -> Tensor:
        if compiled:
            return packing.pad(rows, batch_sizes, batch)
        return torch._VF._pad_packed_sequence(rows, batch_sizes, False, 0.0, steps)[0]

    def pack(output: Tensor) -> Tensor:
        if compiled:
            return packing.pack(output, batch_sizes, data.shape[0])
        return torch._VF._pack_padded_sequence(output, packed_lengths, False)[0]

    def finish(output: Tensor, finals: States) -> tuple[PackedSequence, States]:
        if unsorted_indices is not None:
            finals = tuple(final.index_select(1, unsorted_indices) for final in finals)
        rows = output if output.dim() == data.dim() else pack(output)
        return PackedSequence(rows, batch_sizes, sorted_indices, unsorted_indices), finals

    def lay_out(state: Tensor) -> Tensor:
        state = state if unsorted_indices is None else state.index_select(2, unsorted_indices)
        return state.transpose(1, 2) if options.batch_first else state

    if resets is not None:
        names = "BT" if options.batch_first else "TB"
        shape = (batch, steps) if options.batch_first else (steps, batch)
        checks.resets(options.label.lower(), resets, shape, names, data.device)
        resets = resets.t() if options.batch_first else resets
        resets = resets if sorted_indices is None else resets.index_select(1, sorted_indices)
    expected = _state_shapes(options, weights, batch)
    if states is not None:
        checks.state_sizes(states, expected)
        if sorted_indices is not None:
            states = tuple(state.index_select(1, sorted_indices) for state in states)
    prepared = _prepared(options, weights, pad(data), states, packed_lengths.to(data.device), resets, finish, lay_out)
    call = replace(prepared.call, packed=(data.to(prepared.call.x.dtype), batch_sizes))
    # torch draws the mask over the packed rows: so does this, for the same numbers from the same generator.
    return replace(prepared, call=call, dropout=lambda y: pad(F.dropout(pack(y), options.dropout, training=True)))


def _state_shapes(options: Options, weights: Weights, batch: int) -> list[tuple[int, ...]]:
    """(layers·directions, B, P or H) for h, (layers·directions, B, H) for the others."""
    cell = CELLS[options.cell_name]
    hidden = weights[0][0].shape[0] // len(cell.gates)
    output = weights[0][-1].shape[0] if len(weights[0]) % 2 else hidden
    return [(len(weights), batch, output if index == 0 else hidden) for index in range(len(cell.states))]


def _prepared(
    options: Options,
    weights: Weights,
    x: Tensor,
    states: States | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    finish: Callable[[Tensor, States], tuple[Any, States]],
    lay_out: Callable[[Tensor], Tensor],
) -> Prepared:
    expected = _state_shapes(options, weights, x.shape[1])
    if states is not None:
        checks.state_sizes(states, expected)
    gates, directions = len(CELLS[options.cell_name].gates), 1 + options.bidirectional
    checks.weight_shapes(options.label.lower(), gates, directions, x.shape[-1], weights)
    checks.same_device_and_dtype(x, states or (), [tensor for tensors in weights for tensor in tensors])
    dtype = checks.autocast_dtype(x)
    if dtype is not None:
        x, states = x.to(dtype), states and tuple(state.to(dtype) for state in states)
        weights = [[tensor.to(dtype) for tensor in tensors] for tensors in weights]
    call = Call(
        cell_name=options.cell_name,
        x=x,
        states0=states or tuple(x.new_zeros(shape) for shape in expected),
        weights=weights,
        bidirectional=options.bidirectional,
        dropout=options.dropout,
        training=options.training,
        lengths=lengths,
        resets=resets,
        recompute=options.recompute,
    )
    return Prepared(
        call,
        requested(options.backend and check_name(options.backend)),
        finish,
        lay_out,
        lambda y: F.dropout(y, options.dropout, training=True),
    )


def step(
    options: Options, weights: Sequence[Tensor], input: Tensor, states: States | None, watch: Watch | None = None
) -> States:
    """One step of a cell: input (B, I) and states (B, H) -> the states after it. Sizes are checked by the caller."""
    hx = states and tuple(state.unsqueeze(0) for state in states)
    prepared = _prepared(options, [weights], input.unsqueeze(0), hx, None, None, _as_they_are, lambda state: state)
    return tuple(final.squeeze(0) for final in run(prepared, watch)[1])


def _as_they_are(output: Tensor, finals: States) -> tuple[Tensor, States]:
    return output, finals


def run(prepared: Prepared, watch: Watch | None = None) -> tuple[Tensor, States]:
    """The last layer's output (T, B, directions·P or directions·H) and the final states as `Call.states0`.

    Where `watch` is to be told of every layer, the operators' backends compute them, since torch's kernels cannot tell.
    """
    call, backend = prepared.call, prepared.backend
    layer = call.layer(0, call.x)
    transformed = _is_transformed()
    if watch is not None and not call.return_states:
        backend = "auto" if backend == "aten" else backend
    elif not transformed and aten_serves(backend, call, layer, needs_gradients(layer)):
        return aten.run(call)
    finals = []
    for index in range(1, call.num_layers + 1):
        if transformed:
            result = transforms.forward(layer, history=watch is not None, recompute=call.recompute, backend=backend)
        else:
            result = _forward(layer, watch is not None, call.recompute, backend)
        finals.append(result.finals)
        if watch is not None:
            watch(index - 1, layer, result)
        if index < call.num_layers:
            dropped = call.dropout and call.training
            layer = call.layer(index, prepared.dropout(result.states[0]) if dropped else result.states[0])
    if call.num_layers == 1:
        return result.states[0], tuple(result.finals)
    return result.states[0], tuple(torch.cat(parts) for parts in zip(*finals, strict=True))


def _is_transformed() -> bool:
    """Whether vmap, jvp, grad or their kind are at work: `fastrnn.transforms` serves them."""
    if torch._C._are_functorch_transforms_active():
        return True
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0


def needs_gradients(layer: Layer) -> bool:
    """Whether autograd will ask for the gradient of any of the layer's arguments."""
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
        # torch.jit.trace compares its trace with one made without gradients; backward computes again what is not kept.
        return False
    tensors = (layer.x, *layer.w_ih, *layer.w_hh, *layer.biases, *layer.extras, *layer.states0)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _forward(layer: Layer, history: bool, recompute: bool, backend: str) -> Forward:
    """One layer through its operator, which keeps what backward needs if anything requires gradients."""
    differentiable = needs_gradients(layer)
    gates = differentiable and not recompute
    return ops.forward(layer, history=history or differentiable, gates=gates, backend=backend)


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
    lengths: Tensor | None = None,
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
    options = Options("RNN", f"rnn_{nonlinearity}", bidirectional, batch_first, dropout, training, recompute, backend)
    output, *states = _checked_recurrent(options, weights, input, hx, lengths, resets, return_states)
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
    lengths: Tensor | None = None,
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
    options = Options("GRU", "gru", bidirectional, batch_first, dropout, training, recompute, backend)
    output, *states = _checked_recurrent(options, weights, input, hx, lengths, resets, return_states)
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
    lengths: Tensor | None = None,
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
            weight_hh (4H, P or H), then bias_ih and bias_hh (4H,) if any, then weight_hr (P, H) if any.
        bidirectional: whether `weights` alternate between the forward and the reverse direction.
        batch_first: whether batch comes before time in input, output and resets.
        dropout: probability of dropping an element of each layer's output but the last's, if `training`.
        lengths: (B,) integers: see `fastrnn.LSTM`.
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
    options = Options("LSTM", "lstm", bidirectional, batch_first, dropout, training, recompute, backend)
    return _checked_recurrent(options, weights, input, hx, lengths, resets, return_states)


def _checked_recurrent(options: Options, weights: Weights, *arguments: Any) -> tuple[Any, ...]:
    """`recurrent`, after a check that a module's own parameters do not need."""
    cell = CELLS[options.cell_name]
    checks.weight_counts(options.label.lower(), weights, 1 + options.bidirectional, projection=cell.name == "lstm")
    return recurrent(options, weights, *arguments)
