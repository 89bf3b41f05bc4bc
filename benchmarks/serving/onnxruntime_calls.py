"""ONNX Runtime with carried states: bound, fed with NumPy's arrays, and fed with states gathered from those of many.

In int8 the LSTM's operator is DynamicQuantizeLSTM, which `onnxruntime.quantization` makes of it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.peers.model import build
from benchmarks.peers.onnxruntime_engine import OnnxRuntime
from benchmarks.peers.task import Array, Task
from benchmarks.serving.session import Bound, Session
from benchmarks.serving.task import INT8, ServingTask

QUANTISED = "DynamicQuantizeLSTM"


class Int8(OnnxRuntime):
    """With the LSTM's weights in int8 and activations that are quantised in every step.

    Weights have 7 bits (`reduce_range`), which costs no time: processors without VNNI add pairs of products in 16 bits
    that saturate, and an LSTM's outputs were wrong by a fifth.
    """

    def model(self, task: Task) -> bytes:
        """As `OnnxRuntime.model`. Raises ValueError where the operator was not replaced."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "quantised.onnx")
            model = onnx.load_from_string(build(task))
            logging.disable(logging.WARNING)  # that the model might be prepared first, which one operator does not need
            quantize_dynamic(model, path, weight_type=QuantType.QInt8, reduce_range=True)
            found = path.read_bytes()
        operators = [node.op_type for node in onnx.load_from_string(found).graph.node]
        if operators.count(QUANTISED) != task.layers:
            raise ValueError(f"expected {task.layers} of {QUANTISED}, got {operators}")
        return found


def engine(task: ServingTask) -> OnnxRuntime:
    return (Int8 if task.weights == INT8 else OnnxRuntime)(task.of_peers)


def bound(task: ServingTask) -> Bound:
    """Through IOBinding."""
    return Bound(engine(task), task)


class Fed(Session):
    """`run` with a dictionary of arrays, whose results are the next call's states."""

    def __init__(self, task: ServingTask) -> None:
        peer = task.of_peers
        self.run = engine(task).session.run
        self.inputs = peer.state_inputs
        self.names = [*(["ys"] if peer.has_history else []), *peer.state_outputs]
        self.first = int(peer.has_history)
        """Of the results, which are states."""
        self.y = 0 if peer.has_history else task.layers - 1
        """Which result is the output."""
        self.states = [np.zeros(self.state_shape(task), np.float32) for _ in self.inputs]
        self.feeds: dict[str, Array] = dict(zip(self.inputs, self.states, strict=True))
        self.calls = self.make_calls(task)

    def state_shape(self, task: ServingTask) -> Sequence[int]:
        """Of a layer's states."""
        return task.of_peers.state_shape

    def make_calls(self, task: ServingTask) -> list[partial[Any]]:
        return [partial(self.call, x) for x in task.x.copy()]

    def call(self, x: Array) -> Any:
        feeds = self.feeds
        feeds["x"] = x
        results = self.run(self.names, feeds)
        feeds.update(zip(self.inputs, results[self.first :], strict=True))
        return results[self.y]

    def reset(self) -> None:
        """As `Session.reset`."""
        self.feeds.update(zip(self.inputs, self.states, strict=True))

    def output(self, index: int, returned: Any) -> Array:
        """As `Session.output`."""
        found: Array = returned
        return found


class Gathered(Fed):
    """States of `slots` streams in an array for each state, of which a call takes rows out and puts them back."""

    def state_shape(self, task: ServingTask) -> Sequence[int]:
        """As `Fed.state_shape`."""
        return 1, task.slots, task.hidden_size

    def make_calls(self, task: ServingTask) -> list[partial[Any]]:
        """As `Fed.make_calls`."""
        assert task.rows is not None
        return [partial(self.call_rows, x, rows) for x, rows in zip(task.x.copy(), task.rows.copy(), strict=True)]

    def call_rows(self, x: Array, rows: NDArray[np.int64]) -> Any:
        feeds = self.feeds
        feeds["x"] = x
        for name, state in zip(self.inputs, self.states, strict=True):
            feeds[name] = state[:, rows]
        results = self.run(self.names, feeds)
        for state, result in zip(self.states, results[self.first :], strict=True):
            state[:, rows] = result
        return results[self.y]

    def reset(self) -> None:
        """As `Session.reset`."""
        for state in self.states:
            state.fill(0)
