"""Faults of streams and of their kernels."""

from __future__ import annotations

from tests.faults.fault import Fault

FAULTS = (
    Fault(
        "stream-slot-twice",
        "fastrnn/backends/numba/kernels/stream.py",
        " and load_byte(a.marks, slot) == 0",
        "",
        "a slot that comes twice is stepped twice from the same state",
    ),
    Fault(
        "stream-scattered",
        "fastrnn/backends/numba/kernels/stream.py",
        "address(like, a.h_to, state * a.h_home_row)",
        "address(like, a.h_to, row * a.h_home_row)",
        "states of slots go to the first ones",
    ),
    Fault(
        "stream-chunk-output",
        "fastrnn/backends/numba/kernels/stream.py",
        "address(like, call.ys, start * y_step)",
        "address(like, call.ys, 0)",
        "each chunk of steps is written over the first one's outputs",
    ),
    Fault(
        "stream-int8-scale",
        "fastrnn/backends/numba/stream_weights.py",
        "by_row = matrix.abs().amax(1, keepdim=True) / INT8_LARGEST",
        "by_row = matrix.abs().amax().expand(len(matrix), 1) / INT8_LARGEST",
        "all rows have one scale, and small ones lose their bits",
    ),
    Fault(
        "stream-update",
        "fastrnn/backends/numba/stream_weights.py",
        "        self._put(self._made(layers, step_inputs))\n",
        "        self._made(layers, step_inputs)\n",
        "update leaves the weights as they were",
    ),
    Fault(
        "streamed-memory",
        "fastrnn/binding/streamed.py",
        "            memory = self.free.pop()\n",
        "            memory = self.free[-1]\n",
        "prepacked calls in several threads share scratch memory",
    ),
)
