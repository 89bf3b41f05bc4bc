"""ONNX Runtime, called through IOBinding: a call makes no array and looks up no name."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnxruntime

from benchmarks.peers.buffers import Call
from benchmarks.peers.model import build
from benchmarks.peers.task import Array, Task

LOG_ERRORS = 3
"""Of onnxruntime's severities: no warnings."""


class OnnxRuntime:
    """All optimisations are on by default, and so is spinning: it is what makes short parallel calls fast."""

    def __init__(self, task: Task) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = LOG_ERRORS
        self.session = onnxruntime.InferenceSession(self.model(task), options, providers=["CPUExecutionProvider"])

    def model(self, task: Task) -> bytes:
        """What is loaded."""
        return build(task)

    def bind(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Call:
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        # Without run options: with them version 1.31 takes 42 µs instead of 8 for a step of an LSTM of 64 units.
        return partial(self.session.run_with_iobinding, binding)
