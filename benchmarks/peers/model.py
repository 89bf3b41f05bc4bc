"""The ONNX model of a task: one recurrent operator for each layer, from torch.nn's weights.

ONNX orders gates differently, i o f c for LSTM and z r h for GRU, and puts both directions' weights into one tensor:
W (directions, G·H, I), R (directions, G·H, H), B (directions, 2·G·H), which is b_ih, then b_hh. torch's GRU multiplies
r after the product, which is linear_before_reset = 1.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from benchmarks.peers.task import Array, Task, state_input, state_output

OPSET, IR_VERSION = 17, 8
"""Of 2022: old enough for any ONNX Runtime and OpenVINO in use."""
OPERATORS: dict[str, tuple[str, tuple[int, ...], dict[str, int]]] = {
    "rnn_tanh": ("RNN", (0,), {}),
    "rnn_relu": ("RNN", (0,), {}),
    "lstm": ("LSTM", (0, 3, 1, 2), {}),
    "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
}
"""For each cell, ONNX's operator, torch's gates in ONNX's order, and the operator's attributes."""
ACTIVATIONS = {"rnn_tanh": "Tanh", "rnn_relu": "Relu"}
"""RNN alone has its activation as an attribute, a name for each direction."""


def build(task: Task) -> bytes:
    """The model, serialised.

    Its input x is (T, B, I); its outputs are the final states (directions, B, H) of each layer, and ys
    (T, B, directions·H). A model of a whole sequence starts from zero. One of a step or a chunk of them has the initial
    states as inputs; one of a single step has no ys, which is the last layer's h.
    """
    T = task.steps
    _, B, I = task.x.shape
    inputs, outputs = [tensor("x", (T, B, I))], []
    if task.streaming:
        inputs += [tensor(name, task.state_shape) for name in task.state_inputs]
    if task.has_history:
        outputs.append(tensor("ys", (T, B, task.directions * task.hidden_size)))
    outputs += [tensor(name, task.state_shape) for name in task.state_outputs]
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    for layer in range(task.layers):
        add_layer(task, layer, nodes, constants)
    graph = helper.make_graph(nodes, "recurrent layers", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    serialised: bytes = model.SerializeToString()
    return serialised


def tensor(name: str, shape: tuple[int, ...]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def add_layer(task: Task, layer: int, nodes: list[NodeProto], constants: list[TensorProto]) -> None:
    """Appends a layer's operator, and what makes of its outputs the next layer's input."""
    operator, order, attributes = OPERATORS[task.cell]
    parameters = {f"{name}_l{layer}": array for name, array in layer_weights(task, layer, order).items()}
    constants += [numpy_helper.from_array(array, name) for name, array in parameters.items()]
    x = "x" if layer == 0 else layer_output(task, layer - 1)
    initial = [state_input(state, layer) for state in task.states] if task.streaming else []
    histories = f"histories_l{layer}" if task.has_history else ""
    activations = [ACTIVATIONS[task.cell]] * task.directions if task.cell in ACTIVATIONS else None
    nodes.append(
        helper.make_node(
            operator,
            [x, *parameters, "", *initial] if initial else [x, *parameters],
            [histories, *(state_output(state, layer) for state in task.states)],
            hidden_size=task.hidden_size,
            direction="bidirectional" if task.bidirectional else "forward",
            activations=activations,
            **attributes,
        )
    )
    if not task.has_history:
        return
    ys = layer_output(task, layer)  # histories is (T, directions, B, H)
    if not task.bidirectional:
        constants.append(numpy_helper.from_array(np.array([1]), f"axes_l{layer}"))
        nodes.append(helper.make_node("Squeeze", [histories, f"axes_l{layer}"], [ys]))
        return
    shape = task.steps, task.x.shape[1], 2 * task.hidden_size
    constants.append(numpy_helper.from_array(np.array(shape), f"shape_l{layer}"))
    nodes.append(helper.make_node("Transpose", [histories], [f"time_first_l{layer}"], perm=[0, 2, 1, 3]))
    nodes.append(helper.make_node("Reshape", [f"time_first_l{layer}", f"shape_l{layer}"], [ys]))


def layer_output(task: Task, layer: int) -> str:
    """The name of what the next layer reads: of one step in one direction, (1, B, H), that is the final h itself."""
    if not task.has_history:
        return state_output("h", layer)
    return "ys" if layer == task.layers - 1 else f"ys_l{layer}"


def layer_weights(task: Task, layer: int, order: tuple[int, ...]) -> dict[str, Array]:
    """W, R and B of a layer, gates in ONNX's order."""

    def of(name: str, suffix: str) -> Array:
        weight = task.weights[f"{name}_l{layer}{suffix}"]
        return weight.reshape(len(order), task.hidden_size, -1)[list(order)].reshape(weight.shape)

    suffixes = ("", "_reverse")[: task.directions]
    return {
        "W": np.stack([of("weight_ih", suffix) for suffix in suffixes]),
        "R": np.stack([of("weight_hh", suffix) for suffix in suffixes]),
        "B": np.stack([np.concatenate([of("bias_ih", suffix), of("bias_hh", suffix)]) for suffix in suffixes]),
    }
