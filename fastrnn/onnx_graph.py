"""ONNX graphs of models with fastrnn's modules, once torch has made them: what is left to do, and what cannot be."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

_WEIGHTS, _STATES = range(1, 4), range(5, 7)
"""The inputs W, R and B of ONNX's operators, and initial_h and initial_c."""
_COPIES = {"Cast", "CastLike", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
"""ONNX's operators of which a result holds nothing but elements of the first input."""
_BFLOAT16_OPSET = 22
"""The first version of ONNX's operators that take bfloat16."""
NOWHERE = "fastrnn"
"""The domain of an operator that no runtime has: what it stands for cannot be computed."""


def finish(model: onnx_ir.Model, optimize: bool) -> str | None:
    """If asked for, lays weights out and leaves out states that are zero; says what no runtime could compute, if
    anything."""
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript import optimizer

    if optimize:
        # First, so that what several operators share is laid out once.
        common.CommonSubexpressionEliminationPass()(model)
    nodes = list(onnx_ir.traversal.RecursiveGraphIterator(model.graph))
    if any(node.domain == NOWHERE for node in nodes):
        return "lstm: cannot be exported to ONNX: its LSTM does not give c of every step (return_states)"
    recurrent = [node for node in nodes if node.domain == "" and node.op_type in ("LSTM", "GRU", "RNN")]
    if model.opset_imports.get("", _BFLOAT16_OPSET) < _BFLOAT16_OPSET and any(
        node.inputs[0] is not None and node.inputs[0].dtype == onnx_ir.DataType.BFLOAT16 for node in recurrent
    ):
        return f"ONNX's recurrent operators take bfloat16 from opset_version={_BFLOAT16_OPSET} on"
    if optimize:
        makers = _name_weights(recurrent)
        common.NameFixPass()(model)
        optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=False,
            input_size_limit=sys.maxsize,
            output_size_limit=sys.maxsize,
            should_fold=lambda node: node in makers,
        )
        _drop_zero_states(recurrent)
    return None


def _name_weights(recurrent: Sequence[onnx_ir.Node]) -> set[onnx_ir.Node]:
    """Names constant weights by their first parameters, and returns the nodes that make them."""
    makers: set[onnx_ir.Node] = set()
    for node in recurrent:
        for index in _WEIGHTS:
            weight = node.inputs[index] if index < len(node.inputs) else None
            if weight is None or weight.producer() is None:
                continue
            values = _made_of(weight)
            sources = [value for value in values if value.producer() is None]
            if sources and all(source.const_value is not None for source in sources):
                makers.update(maker for value in values if (maker := value.producer()) is not None)
                weight.name = f"{sources[0].name}.onnx"
    return makers


def _made_of(value: onnx_ir.Value) -> list[onnx_ir.Value]:
    """The value and all that it is computed from, an operator's first input before its second."""
    found: dict[onnx_ir.Value, None] = {}
    pending = [value]
    while pending:
        one = pending.pop()
        node = None if one in found else one.producer()
        found[one] = None
        if node is not None:
            pending += [source for source in reversed(node.inputs) if source is not None]
    return list(found)


def _drop_zero_states(recurrent: Sequence[onnx_ir.Node]) -> None:
    """Zero is what ONNX's operators take where an initial state is not given."""
    for node in recurrent:
        for index in _STATES:
            if index < len(node.inputs) and _is_zero(node.inputs[index]):
                node.replace_input_with(index, None)


def _is_zero(value: onnx_ir.Value | None) -> bool:
    """Whether a value is known to be zero, whatever its shape."""
    if value is None:
        return False
    if value.const_value is not None:
        return not value.const_value.numpy().any()
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type == "ConstantOfShape":
        filling = node.attributes.get("value")
        return filling is None or not filling.as_tensor().numpy().any()
    return node.op_type in _COPIES and _is_zero(node.inputs[0])
