"""OpenVINO's CPU plugin, called through requests whose tensors are set once."""

from __future__ import annotations

from functools import partial

import openvino

from benchmarks.peers.buffers import Call
from benchmarks.peers.model import build
from benchmarks.peers.task import Array, Task

FUSED = {"RNNSeq", "RNNCell"}
"""The plugin's layers that are oneDNN's recurrent primitive. They call themselves "ref_any_f32" whatever oneDNN chose;
ONEDNN_VERBOSE=1 shows that it runs `rnn,brgemm:avx512_core`."""


class NotFused(Exception):
    """OpenVINO took the recurrent operator apart, or uses other threads than it was given."""


class OpenVINO:
    def __init__(self, task: Task) -> None:
        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": task.threads,
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, where the processor has it
        }
        self.compiled = core.compile_model(core.read_model(build(task)), "CPU", settings)
        kinds = [layer_type(node) for node in self.compiled.get_runtime_model().get_ordered_ops()]
        if sum(kind in FUSED for kind in kinds) != task.layers * task.directions:
            raise NotFused(f"expected {task.layers * task.directions} of {sorted(FUSED)}, got {kinds}")
        threads = int(self.compiled.get_property("INFERENCE_NUM_THREADS"))
        if threads != task.threads:
            raise NotFused(f"OpenVINO uses {threads} threads, expected {task.threads}")

    def bind(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Call:
        request = self.compiled.create_infer_request()
        for name, array in (inputs | outputs).items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        # Not start_async and wait, which take 7 µs longer; share_outputs spares a copy of what is returned.
        return partial(request.infer, share_outputs=True)


def layer_type(node: openvino.Node) -> str:
    return str(node.get_rt_info()["layerType"].astype(str))
