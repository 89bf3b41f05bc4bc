"""Models with fastrnn's modules as ONNX files, in which each layer is one of ONNX's own operators LSTM, GRU and RNN.

Layers of other cells, for which ONNX has no operator, become its Scan for each direction, whose body is a step.

`export` does what `torch.onnx.export(..., dynamo=True)` does and knows fastrnn's operators besides. The translation is
made of torch's operators and `torch.onnx.ops.symbolic_multi_out`; `decompositions` gives it to who calls
`torch.onnx.export` with a program of `torch.export.export`.

ONNX orders gates differently, i o f c for LSTM and z r h for GRU, and puts the weights of both directions into one
tensor: W (directions, G·H, I), R (directions, G·H, H), B (directions, 2·G·H), which is b_ih, then b_hh. torch's GRU
multiplies r after the product, which is linear_before_reset = 1.

Source: the specification of the operators, https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html and
onnx__RNN.html; the documentation of torch.onnx.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import heads
from fastrnn.backends import use_backend
from fastrnn.backends.layer import Forward, Layer
from fastrnn.cells import CELLS
from fastrnn.export import decompositions as core_operators
from fastrnn.export import distinct, refuse_merged
from fastrnn.nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from fastrnn.onnx_graph import NOWHERE, finish
from fastrnn.recurrent import Recurrent, RecurrentCell

__all__ = ["CannotExport", "decompositions", "export"]


class CannotExport(RuntimeError):
    """A model uses what ONNX's operators cannot do; the message says what."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        """as it was before a tracer adds to it"""


class _Operator(NamedTuple):
    """How ONNX computes a cell."""

    name: str
    gates: tuple[int, ...]
    """torch's gates in ONNX's order"""
    linear_before_reset: bool = False
    activation: str | None = None
    """where it is not the operator's only one"""


_OPERATORS = {
    "rnn_tanh": _Operator("RNN", (0,), activation="Tanh"),
    "rnn_relu": _Operator("RNN", (0,), activation="Relu"),
    "lstm": _Operator("LSTM", (0, 3, 1, 2)),
    "gru": _Operator("GRU", (1, 0, 2), linear_before_reset=True),
}
_MODULES = (RNN, GRU, LSTM, RNNCell, GRUCell, LSTMCell, Recurrent, RecurrentCell)


def export(
    model: nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...] | Tensor = (),
    path: str | os.PathLike[str] | None = None,
    *,
    optimize: bool = True,
    export_params: bool = True,
    keep_initializers_as_inputs: bool = False,
    external_data: bool = True,
    **options: Any,
) -> torch.onnx.ONNXProgram:
    """Exports a model to ONNX by `torch.onnx.export(..., dynamo=True)`, its fastrnn layers as LSTM, GRU and RNN.

    A module is exported as it computes in evaluation mode and without gradients, whatever its mode and its backends
    are, and is left as it was. Each layer of a stack becomes one operator, and so does each call of a cell. Of another
    cell (`fastrnn.Recurrent`) each layer and direction becomes a Scan, with all that it takes, and a single step its
    operations. Else `lengths`
    become `sequence_lens`, initial states of zero are left out, and weights are stored once, in ONNX's order, under the
    name of the first parameter that they are made of, with ".onnx" after it. Of layers with heads (`num_heads`) these
    are the weights of one head, N times as many, all but the blocks 0.

    On the CPU, ONNX Runtime 1.31 computes these operators in float32 and float16, and refuses float64 and bfloat16. T
    and B must be 1 or more there: its LSTM and GRU have ended the process where either was 0.

    Args:
        model: a module, or a program of `torch.export.export`.
        args: example arguments, as for `torch.onnx.export`.
        path: where to write the file; nowhere if None.
        optimize: whether weights are laid out beforehand and the graph is simplified. If not, the file holds the
            parameters as they are, and nodes that lay them out.
        export_params, keep_initializers_as_inputs, external_data, options: as `torch.onnx.export`, whose
            `dynamic_shapes` names the axes whose size may change. With `external_data`, the default, weights go into a
            second file beside the first.

    Returns:
        The program, whose `model_proto` is the ONNX model.

    Raises:
        CannotExport: for what ONNX's LSTM, GRU and RNN do not have: `proj_size`, `resets`, an LSTM's c of every step
            (`return_states`), bfloat16 before opset 22; and for a PackedSequence, whose size depends on data.
        TypeError: the file was named by `f`, as torch.onnx.export calls it, instead of `path`.
        ValueError: a program was captured with one tensor as several inputs, which torch.export makes one of (a module
            may be given one: its inputs stay apart); `dynamo=False` was asked for. The exporter that is based on
            TorchScript, `torch.onnx.export(..., dynamo=False)`, sees torch's kernels in fastrnn's modules, but where
            these cannot serve a call: it does not know fastrnn's operators.
        ImportError: what `pip install "fastrnn[onnx]"` installs is missing.

    Example::

        >>> import torch, fastrnn
        >>> lstm = fastrnn.LSTM(10, 20, batch_first=True)
        >>> axes = {0: "batch", 1: "time"}
        >>> program = fastrnn.onnx.export(lstm, (torch.randn(3, 5, 10),), dynamic_shapes=(axes,), verbose=False)
        >>> [node.op_type for node in program.model.graph if node.op_type in ("LSTM", "GRU", "RNN")]
        ['LSTM']
    """
    if "f" in options:
        raise TypeError("fastrnn.onnx.export: the file is named by path, not by f")
    if options.pop("dynamo", True) is not True:
        raise ValueError(
            "fastrnn.onnx.export: dynamo must be True: the exporter based on TorchScript does not know fastrnn's "
            "operators. torch.onnx.export(..., dynamo=False) sees torch's kernels, where they serve a call"
        )
    _require_packages()
    given = (args,) if isinstance(args, Tensor) else args
    if isinstance(model, nn.Module):
        weights = (*model.parameters(), *model.buffers())
        given, options["kwargs"] = distinct((given, options.get("kwargs")), weights)
    else:
        refuse_merged(model)
    try:
        with _decomposing(), _as_exported(model):
            program = torch.onnx.export(model, given, dynamo=True, optimize=False, **options)
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, CannotExport):
                raise CannotExport(cause.message) from None
        raise
    assert program is not None
    reason = finish(program.model, optimize)
    if reason is not None:
        raise CannotExport(reason)
    if optimize:
        program.optimize()
    if path is not None:
        program.save(
            path,
            include_initializers=export_params,
            keep_initializers_as_inputs=keep_initializers_as_inputs,
            external_data=external_data,
        )
    return program


def decompositions() -> dict[Any, Callable[..., Forward]]:
    """What turns fastrnn's operators into ONNX's in a program of `torch.export.export`, other cells' into torch's.

    `export` takes such programs as they are; this is for who calls `torch.onnx.export` with them. Large weights are
    then in the file as torch has them, and laid out by nodes, which a runtime computes once when it loads the file.

    Returns:
        A table for `torch.export.ExportedProgram.run_decompositions`, by operator. The functions in it raise
        CannotExport as `export`.

    Example::

        >>> import torch, fastrnn
        >>> program = torch.export.export(fastrnn.GRU(3, 4), (torch.randn(5, 2, 3),))
        >>> program = program.run_decompositions(fastrnn.onnx.decompositions())
        >>> any("fastrnn" in str(node.target) for node in program.graph.nodes)
        False
    """
    of_any_cell = torch.ops.fastrnn.cell_forward.default
    return {
        of_any_cell: core_operators()[of_any_cell],
        **{getattr(torch.ops.fastrnn, f"{name}_forward").default: partial(_decomposed, name) for name in _OPERATORS},
    }


def _decomposed(cell_name: str, *arguments: Any) -> Forward:
    """What a forward operator computes from its arguments, by ONNX's operator."""
    from torch.onnx.ops import symbolic_multi_out

    *layer_arguments, history, gates, _ = arguments
    layer = Layer(cell_name, *layer_arguments)
    reason = _why_not(layer)
    if reason is not None:
        raise CannotExport(f"{cell_name}: cannot be exported to ONNX: {reason}")
    operator, cell = _OPERATORS[cell_name], CELLS[cell_name]
    (T, B, _), D, H = layer.x.shape, layer.directions, layer.hidden_size
    inputs = [
        layer.x,
        _packed(layer.w_ih, operator.gates, D),
        _packed([_of_one_head(w, len(operator.gates)) for w in layer.w_hh], operator.gates, D),
        _packed(layer.biases, operator.gates, D) if layer.biases else None,
        None if layer.lengths is None else layer.lengths.to(torch.int32),
        *layer.states0,
    ]
    ys, *finals = symbolic_multi_out(
        operator.name,
        inputs,
        _attributes(operator, layer),
        dtypes=[layer.x.dtype] * (1 + len(cell.states)),
        shapes=[(T, D, B, H), *[(D, B, H)] * len(cell.states)],
    )
    if layer.lengths is not None:
        # ONNX does not say what follows a sequence of no steps, and ONNX Runtime gives zero.
        empty = (layer.lengths == 0).unsqueeze(1)
        finals = [torch.where(empty, before, after) for before, after in zip(layer.states0, finals, strict=True)]
    states = [ys.squeeze(1) if D == 1 else ys.transpose(1, 2).flatten(2)]
    if history:
        states += [_absent(layer, (T, B, D * H), layer.state_dtype) for _ in cell.states[1:]]
    saved = [_absent(layer, (D, T, B, len(cell.saved) * H), layer.gate_dtype)] if gates and cell.saved else []
    return Forward(states, finals, saved)


def _why_not(layer: Layer) -> str | None:
    if layer.projected:
        return "ONNX's LSTM has no projection (proj_size)"
    if layer.resets is not None:
        return "ONNX's operators have no resets"
    if layer.recurrent_mask is not None:
        return "ONNX's operators have no recurrent dropout"
    return None


def _of_one_head(w_hh: Tensor, gates: int) -> Tensor:
    """(N, G·D, K) -> (G·H, K): zeros around the blocks of several heads, which the operators have not."""
    return w_hh.squeeze(0) if w_hh.shape[0] == 1 else heads.dense_weights(w_hh, gates)


def _packed(tensors: Sequence[Tensor], gates: tuple[int, ...], directions: int) -> Tensor:
    """k tensors (G·H, ...) for each direction, with their gates in the given order: (directions, k·G·H, ...)."""
    by_gate = torch.cat(list(tensors)).unflatten(0, (len(tensors), len(gates), -1))
    if len(gates) > 1:
        by_gate = torch.stack([by_gate[:, gate] for gate in gates], 1)
    packed: Tensor = by_gate.flatten(0, 2).unflatten(0, (directions, -1))
    return packed


def _attributes(operator: _Operator, layer: Layer) -> dict[str, Any]:
    direction = "bidirectional" if layer.directions == 2 else "reverse" if layer.reverse else "forward"
    attributes: dict[str, Any] = {"hidden_size": layer.hidden_size, "direction": direction}
    if operator.linear_before_reset:
        attributes["linear_before_reset"] = 1
    if operator.activation is not None:
        attributes["activations"] = [operator.activation] * layer.directions
    return attributes


def _absent(layer: Layer, shape: Sequence[int | torch.SymInt], dtype: torch.dtype) -> Tensor:
    """What ONNX's operators do not give, and only a backward or `return_states` reads: without readers it vanishes."""
    from torch.onnx.ops import symbolic

    return symbolic(f"{NOWHERE}::StatesOfEveryStep", (layer.x,), dtype=dtype, shape=shape, version=1)


def _require_packages() -> None:
    try:
        for name in ("onnxscript", "torch.onnx.ops"):
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'fastrnn.onnx.export needs what pip install "fastrnn[onnx]" installs: {error}') from error


@contextmanager
def _decomposing() -> Iterator[None]:
    """Within it, torch's exporter decomposes fastrnn's operators as it does all others of this table."""
    table, ours = torch._decomp.decomposition_table, decompositions()
    table.update(ours)
    try:
        yield
    finally:
        for operator in ours:
            del table[operator]


@contextmanager
def _as_exported(model: nn.Module | torch.export.ExportedProgram) -> Iterator[None]:
    """Within it, a module computes in evaluation mode and through fastrnn's operators; afterwards it is as it was."""
    named = list(model.named_modules()) if isinstance(model, nn.Module) else []
    modes = [(module, module.training) for _, module in named]
    ours = [(name, module) for name, module in named if isinstance(module, _MODULES)]
    backends = [(module, module.backend) for _, module in ours]
    hooks = [
        module.register_forward_pre_hook(partial(_refuse_packed, name or "the model"), with_kwargs=True)
        for name, module in ours
    ]
    try:
        if isinstance(model, nn.Module) and any(training for _, training in modes):
            model.eval()
        for module, _ in backends:
            module.backend = "auto"
        with torch.no_grad(), use_backend("auto"):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, backend in backends:
            module.backend = backend
        if isinstance(model, nn.Module) and model.training != modes[0][1]:
            model.train()  # which a module may have overridden
        for module, training in modes:
            module.training = training


def _refuse_packed(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if any(isinstance(argument, PackedSequence) for argument in (*args, *kwargs.values())):
        raise CannotExport(
            f"{name}: a PackedSequence cannot be exported to ONNX, its size depends on data: "
            "give the module padded input and lengths="
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
