"""`python -m fastrnn`: which backends can run here, and why the others cannot; `--json` for programs.

With `--warm-up` it compiles the CPU's kernels instead. The exit status is 1 if a later call may wait for one after all.
`python -m fastrnn cell module:name` shows what a cell is made of.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastrnn import __version__, backends, extension, warm_up
from fastrnn.backends.cuda import nvrtc, run_time
from fastrnn.backends.triton import c_compiler, python_headers
from fastrnn.cells import CELLS
from fastrnn.cells import show as show_cell

PACKAGES = ("torch", "numba", "llvmlite", "triton", "numpy")
PIPED_WIDTH = 10_000
"""Columns of a table that goes to a file or another program: no line is broken there."""


def describe() -> dict[str, Any]:
    """Everything that is reported, as plain values for JSON."""
    return {
        "versions": {
            "fastrnn": __version__,
            "python": platform.python_version(),
            **{name: package_version(name) for name in PACKAGES},
        },
        "location": str(extension.PACKAGE),
        "platform": platform.platform(),
        "cpu": {
            "model": cpu_model(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "gpu": describe_gpus(),
        "extension": describe_extension(),
        "streaming_door": describe_door(),
        "nvrtc": describe_nvrtc(),
        "triton_launcher": {"c_compiler": c_compiler(), "python_headers": python_headers()},
        "backends": {name: describe_backend(name) for name in backends.BACKENDS},
    }


def package_version(name: str) -> str | None:
    """None where the package is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's own name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def describe_gpus() -> dict[str, Any]:
    """The GPUs that torch can use, and why there are none."""
    built = torch.version.cuda or torch.version.hip
    result: dict[str, Any] = {"torch_cuda": torch.version.cuda, "devices": [], "reason": None}
    if built is None:
        result["reason"] = "torch is built without CUDA"
        return result
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        result["reason"] = "; ".join(str(warning.message) for warning in said) or "torch finds no GPU"
        return result
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        result["devices"].append(
            {
                "name": properties.name,
                "capability": [properties.major, properties.minor],
                "multiprocessors": properties.multi_processor_count,
                "memory": properties.total_memory,
            }
        )
    return result


def describe_extension() -> dict[str, Any]:
    """The CUDA extension: the reason where it is missing, else what it was built for and what it finds."""
    reason = extension.why_missing()
    if reason is not None:
        return {"built": False, "reason": reason}
    result = {"built": True, **asdict(extension.build()), "devices": [], "reason": None}
    try:
        result["devices"] = [asdict(device) for device in extension.devices()]
    except RuntimeError as error:
        result["reason"] = str(error)
    return result


def describe_door() -> dict[str, Any]:
    """Whether streams are called by compiled code, which takes a fraction of a microsecond, and why not."""
    reason = extension.why_no_door()
    return {"built": reason is None, "reason": reason}


def describe_nvrtc() -> dict[str, Any]:
    """What compiles the extension's kernels for cells that are not built in, or why nothing does."""
    reason = run_time.why_missing()
    if reason is not None:
        return {"version": None, "path": None, "reason": reason}
    return {"version": nvrtc.version(), "path": nvrtc.path(), "reason": None}


def describe_backend(name: str) -> dict[str, Any]:
    """Whether a backend can run here. One that fails to load is reported like one that says why it cannot."""
    try:
        reason = backends.module(name).ready()
    except Exception as error:
        reason = f"it does not load: {type(error).__name__}: {error}"
    return {"ready": reason is None, "reason": reason}


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the table shows of `describe()`, line by line: a label and a text; a blank label continues the one above."""
    for name, number in found["versions"].items():
        yield name, number or "not installed"
    yield "location", found["location"]
    cpu = found["cpu"]
    yield "CPU", f"{cpu['model']}, {cpu['instruction_set']}, {cpu['threads']} threads"
    yield from gpu_rows(found["gpu"])
    yield from extension_rows(found["extension"])
    door = found["streaming_door"]
    yield "streaming door", "compiled" if door["built"] else f"in Python, which is slower: {door['reason']}"
    compiler = found["nvrtc"]
    yield (
        "NVRTC",
        f"{compiler['version']}, {compiler['path']}" if compiler["version"] else f"none: {compiler['reason']}",
    )
    launcher = found["triton_launcher"]
    yield "C compiler", launcher["c_compiler"] or "none (Triton's launcher needs one on a GPU)"
    yield "Python headers", launcher["python_headers"] or "none (Triton's launcher needs Python.h on a GPU)"


def gpu_rows(gpu: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The GPUs of torch."""
    if not gpu["devices"]:
        yield "GPU", f"none: {gpu['reason']}"
    for index, device in enumerate(gpu["devices"]):
        major, minor = device["capability"]
        memory = f"{device['memory'] / 2**30:.0f} GiB"
        yield f"GPU {index}", f"{device['name']}, sm_{major}{minor}, {device['multiprocessors']} SMs, {memory}"


def extension_rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The extension and the devices that it tried."""
    if not found["built"]:
        yield "CUDA extension", f"none: {found['reason']}"
        return
    if found["host"]:
        yield "CUDA extension", "its kernels are compiled for the CPU, for tests"
        return
    yield "CUDA extension", f"CUDA {found['cuda']}, for sm_{', sm_'.join(found['architectures'])}"
    if found["reason"]:
        yield "", f"no GPU: {found['reason']}"
    for device in found["devices"]:
        shared = f"{device['shared_memory_per_block'] // 2**10} KiB shared memory"
        ran = f"runs its sm_{device['architecture']} code" if device["problem"] is None else device["problem"]
        yield "", f"{device['name']}, {device['multiprocessors']} SMs, {shared} a block: {ran}"


def plain_table() -> Table:
    """A table without lines, which reads the same on a terminal and in a file."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def tables(found: dict[str, Any]) -> Iterator[Table]:
    """What `describe()` returned, as two tables: what is there, and which backends that serves."""
    table = plain_table()
    for label, text in rows(found):
        table.add_row(label, Text(text))
    table.add_row()
    yield table
    table = plain_table()
    for name, backend in found["backends"].items():
        state = Text("ready", style="green") if backend["ready"] else Text(f"not here: {backend['reason']}")
        table.add_row(f"backend {name}", state)
    yield table


def show(*tables: Table) -> None:
    """Prints the tables: within the terminal's width, or for a file in whole lines without trailing spaces."""
    console = Console()
    if console.is_terminal:
        console.print(*tables, sep="\n")
        return
    console = Console(width=PIPED_WIDTH)
    with console.capture() as capture:
        console.print(*tables, sep="\n")
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def compile_kernels(options: argparse.Namespace) -> int:
    """What `--warm-up` does. Returns the exit status."""
    report = warm_up.warm_up(options.cells or CELLS, options.dtype or warm_up.DEFAULT_DTYPES, options.streams)
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
    elif report.kernels:
        show(warm_up.table(report))
        print(f"\nkept in {report.directory}")
    if report.reason is not None:
        print(f"fastrnn: {report.reason}", file=sys.stderr)
    return 0 if report.reason is None else 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m fastrnn", description=__doc__)
    add = parser.add_argument
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add("--warm-up", action="store_true", help="compile the CPU's kernels, or find them on disk: no later call waits")
    add("--cells", nargs="+", choices=tuple(CELLS), help="whose kernels; default: all")
    add(
        "--dtype",
        nargs="+",
        choices=tuple(warm_up.DTYPES),
        help=f"default: {', '.join(warm_up.DEFAULT_DTYPES)}, which serves 16-bit tensors too",
    )
    add("--streams", action="store_true", help="those of fastrnn.stream and of prepacked weights, too")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command with `arguments`, the process's own by default. Returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["cell"]:
        return show_cell.main(arguments[1:])
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.warm_up:
        return compile_kernels(options)
    if options.cells or options.dtype or options.streams:
        parser.error("--cells, --dtype and --streams go with --warm-up")
    found = describe()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(*tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
