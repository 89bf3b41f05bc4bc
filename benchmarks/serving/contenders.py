"""Who serves, and what: by its process's class, with which weights which cells."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cases import MODULES
from benchmarks.serving.task import FLOAT16, FLOAT32, INT8

ALL = tuple(MODULES)
GATED = ("lstm", "gru")
HERE = __package__


@dataclass(frozen=True, eq=False)
class Contender:
    """A way to serve, in a process of its own."""

    option: str
    """What chooses it on the command line, as others of the same library."""
    name: str
    engine: str
    """MODULE:CLASS, imported over there."""
    cells: Mapping[str, Sequence[str]]
    """By weights, those that it serves."""
    is_ours: bool = False
    takes_rows: bool = False
    """Whether a call is told which of many streams it steps; else all that it was made for."""
    packages: Sequence[str] = ()


NAME = "fastrnn.stream"
STREAM, SEPARATE, MODULE = "stream", "separate", "module"
PEERS = TORCH, ONNX_RUNTIME, OPENVINO = "torch", "onnxruntime", "openvino"
OPTIONS = (STREAM, SEPARATE, MODULE, *PEERS)

OF_STREAM = {FLOAT32: ALL, FLOAT16: ALL, INT8: ALL}
OF_TORCH = {FLOAT32: ALL, INT8: GATED}
OF_ONNX_RUNTIME = {FLOAT32: ALL, INT8: ("lstm",)}
WITH_ONNX = ("onnx", "onnxruntime")

LATENCY = (
    Contender(STREAM, NAME, f"{HERE}.ours:Stream", OF_STREAM, is_ours=True),
    Contender(MODULE, "fastrnn, prepacked", f"{HERE}.ours:Module", {FLOAT32: ALL}, is_ours=True),
    Contender(TORCH, "torch.nn", f"{HERE}.torch_calls:Module", OF_TORCH),
    *(
        Contender(ONNX_RUNTIME, name, f"{HERE}.onnxruntime_calls:{engine}", OF_ONNX_RUNTIME, packages=WITH_ONNX)
        for name, engine in (("ONNX Runtime, bound", "bound"), ("ONNX Runtime, fed", "Fed"))
    ),
    Contender(OPENVINO, "OpenVINO", f"{HERE}.openvino_calls:bound", {FLOAT32: ALL}, packages=("onnx", "openvino")),
)
"""A batch whose rows are all stepped in every call."""
SLOTS = (
    Contender(STREAM, f"{NAME}, slots", f"{HERE}.ours:Stream", OF_STREAM, is_ours=True, takes_rows=True),
    Contender(SEPARATE, f"{NAME}, one each", f"{HERE}.ours:Separate", OF_STREAM, is_ours=True),
    Contender(TORCH, "torch.nn, gathered", f"{HERE}.torch_calls:Gathered", OF_TORCH, takes_rows=True),
    Contender(
        ONNX_RUNTIME,
        "ONNX Runtime, gathered",
        f"{HERE}.onnxruntime_calls:Gathered",
        OF_ONNX_RUNTIME,
        takes_rows=True,
        packages=WITH_ONNX,
    ),
)
"""Some of many streams, other ones in every call."""


def missing(option: str) -> list[str]:
    """Which packages a contender of that name needs and does not find."""
    needed = [package for one in (*LATENCY, *SLOTS) if one.option == option for package in one.packages]
    return [package for package in dict.fromkeys(needed) if importlib.util.find_spec(package) is None]
