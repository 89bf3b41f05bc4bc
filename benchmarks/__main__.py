"""`python -m benchmarks`: measures fastrnn against torch.nn and reports it; with resets, against TorchRL.

With --peers, ONNX Runtime and OpenVINO are measured too, wherever they serve: see `benchmarks.peers`.

The exit status is 0 if everything was measured, 1 if a contender failed or its results were wrong, 2 if the command
line was, 130 if the measurement was interrupted; what was measured until then is reported.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import cuda, environment, report, torchrl_triton
from benchmarks.cases import (
    DEFAULT_CELLS,
    DEFAULT_MODES,
    DEVICES,
    DTYPES,
    MODES,
    MODULES,
    SHAPES,
    STEP_MODES,
    TF32,
    Case,
    parse_shapes,
)
from benchmarks.command_line import (
    FAILURE,
    INTERRUPTED,
    OK,
    USAGE_ERROR,
    UsageError,
    check_output,
    console_for_tables,
    known,
    known_backends,
    listed,
    positive_float,
    positive_int,
    probability,
)
from benchmarks.contenders import Contender, FastRNN, TorchNN
from benchmarks.peers.contender import PEERS, Peer, can_stop, missing, peer
from benchmarks.runner import CaseResult, is_peer, measure_case
from benchmarks.torchrl_triton import TorchRL

DEFAULT_BACKENDS = {"cpu": ("auto",), "cuda": ("auto", "triton", "cuda")}
"""By device: "auto", which runs everywhere, and of the others those that fastrnn has and that can run."""
DEFAULT_BUDGET = 3.0
"""Seconds a case: the default table then takes two to three minutes, memory included."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.peers == []:
        options.peers = list(PEERS)
    for name in ("cells", "modes", "shapes", "dtype", "backends", "peers"):
        setattr(options, name, listed(getattr(options, name) or []))
    try:
        check_device(options.device)
        options.backends = known_backends(options.backends) if options.backends else default_backends(options.device)
        baseline, *contenders = choose_contenders(options)
        peers = choose_peers(options)
        cases = build_cases(options)
        check_outputs(options)
    except (UsageError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with ExitStack() as processes:
        for contender in peers:
            processes.callback(contender.close)
        return measure_and_report(cases, baseline, [*contenders, *peers], options)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures fastrnn against torch.nn, side by side; with --resets, against TorchRL's Triton kernels; "
        "with --peers, on the CPU, against ONNX Runtime and OpenVINO as well. "
        "Lists take spaces or commas.",
    )
    add = parser.add_argument
    add("--cells", nargs="+", default=DEFAULT_CELLS, metavar="CELL", help=f"of {', '.join(MODULES)}")
    add(
        "--modes",
        nargs="+",
        default=DEFAULT_MODES,
        metavar="MODE",
        help=f"of {', '.join(MODES)}; the last two are one step a call, whatever a shape's T; "
        f"default: {', '.join(DEFAULT_MODES)}",
    )
    add(
        "--shapes",
        nargs="+",
        default=["default"],
        metavar="SHAPE",
        help=f"TxBxH, TxBxIxH or a table of {', '.join(SHAPES)}",
    )
    backends = "; ".join(f"{', '.join(names)} on {device}" for device, names in DEFAULT_BACKENDS.items())
    add("--device", choices=DEVICES, default=DEVICES[0])
    add("--backends", nargs="+", default=[], metavar="NAME", help=f"fastrnn's backends; default: {backends}")
    add(
        "--no-torchrl",
        dest="torchrl",
        action="store_false",
        help="on cuda, leave out TorchRL, which is tuned each case",
    )
    add(
        "--peers",
        nargs="*",
        metavar="NAME",
        help=f'of {", ".join(PEERS)}, without names all; on cpu, in all modes but training; pip install ".[peers]"',
    )
    add("--prepack", action="store_true", help="on cpu, measure fastrnn with weights laid out once, too")
    add("--layers", type=positive_int, default=1, metavar="N")
    add("--bidirectional", action="store_true")
    add("--dtype", nargs="+", default=[DTYPES[0]], metavar="DTYPE", help=f"of {', '.join(DTYPES)}; {TF32} on cuda only")
    add("--resets", type=probability, default=0.0, metavar="P", help="cut sequences before each step with this chance")
    add("--threads", type=positive_int, metavar="N", help="default: torch's own choice")
    add(
        "--budget",
        type=positive_float,
        default=DEFAULT_BUDGET,
        metavar="SECONDS",
        help="for the times of each case, graphs included",
    )
    add("--no-memory", dest="memory", action="store_false", help="skip peak memory, which takes a process each on cpu")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--plot", type=Path, metavar="FILE", help="write a picture of the ratios as PNG; needs matplotlib")
    return parser


def default_backends(device: str) -> list[str]:
    """Those of DEFAULT_BACKENDS that fastrnn has and that can run on this machine."""
    from fastrnn import backends

    return [
        name
        for name in DEFAULT_BACKENDS[device]
        if name in backends.NAMES and (name == "auto" or backends.module(name).ready() is None)
    ]


def check_device(device: str) -> None:
    """Raises UsageError if nothing can be measured on `device` here."""
    reason = cuda.why_not() if device == "cuda" else None
    if reason is not None:
        raise UsageError(f"--device {device}: {reason}")


def choose_contenders(options: argparse.Namespace) -> list[Contender]:
    """The baseline, then everyone else: torch.nn or, with resets, which torch.nn does not take, TorchRL comes first.

    Raises UsageError.
    """
    ours = [FastRNN(name) for name in options.backends]
    if options.prepack:
        if options.device != "cpu":
            raise UsageError("--prepack: on cpu only")
        ours += [FastRNN(name, prepacked=True) for name in options.backends]
    if options.resets:
        if not options.torchrl:
            raise UsageError("--no-torchrl: with --resets everything is compared with TorchRL")
        return [TorchRL(), *ours]
    peers = [TorchRL()] if options.device == "cuda" and options.torchrl and torchrl_triton.installed() else []
    return [TorchNN(), *peers, *ours]


def choose_peers(options: argparse.Namespace) -> list[Peer]:
    """What --peers names. Raises UsageError."""
    if not options.peers:
        return []
    names = known("peer", options.peers, PEERS)
    if options.device != "cpu" or options.resets:
        raise UsageError("--peers: on cpu and without resets only")
    if not can_stop():
        raise UsageError("--peers: this system cannot stop a process between its turns")
    absent = list(dict.fromkeys(package for name in names for package in missing(name)))
    if absent:
        raise UsageError(f'--peers: needs {", ".join(absent)}; pip install "fastrnn[peers]"')
    return [peer(name) for name in names]


def build_cases(options: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for, by cell, mode, dtype and shape. Raises UsageError or ValueError."""
    cells = known("cell", options.cells, MODULES)
    modes = known("mode", options.modes, MODES)
    dtypes = known("dtype", options.dtype, DTYPES)
    if TF32 in dtypes:
        if options.device != "cuda":
            raise UsageError(f"--dtype {TF32}: needs --device cuda")
        if not cuda.has_tf32():
            raise UsageError(f"--dtype {TF32}: this GPU computes nothing in TF32")
    shapes = parse_shapes(options.shapes)
    steps = list(dict.fromkeys(shape._replace(T=1) for shape in shapes))
    cases = [
        Case(cell, mode, shape, dtype, options.layers, options.bidirectional, options.device, options.resets)
        for cell in cells
        for mode in modes
        for dtype in dtypes
        for shape in (steps if mode in STEP_MODES else shapes)
    ]
    for case in cases:
        reason = case.why_not()
        if reason is not None:
            raise UsageError(f"--modes {case.mode}: {reason}")
    return cases


def check_outputs(options: argparse.Namespace) -> None:
    """Raises UsageError, before minutes go by, for what could not be written in the end."""
    check_output("--json", options.json)
    check_output("--plot", options.plot)
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError('--plot: needs matplotlib; pip install "fastrnn[bench]"')


def measure_and_report(
    cases: list[Case], baseline: Contender, contenders: list[Contender], options: argparse.Namespace
) -> int:
    """Measures `cases` with a progress bar on standard error, then reports on standard output and to files."""
    results: list[CaseResult] = []
    status = OK
    where = environment.describe(options.device, options.peers)
    try:
        measure(cases, baseline, contenders, options, results)
    except KeyboardInterrupt:
        print(f"interrupted after {len(results)} of {len(cases)} cases", file=sys.stderr)
        status = INTERRUPTED
    if results:
        report.print_report(console_for_tables(), results, where)
    try:
        write_files(results, where, options)
    except OSError as error:
        print(f"cannot write: {error}", file=sys.stderr)
        return FAILURE
    return status or (FAILURE if any(result.failed for result in results) else OK)


def measure(
    cases: list[Case],
    baseline: Contender,
    contenders: list[Contender],
    options: argparse.Namespace,
    results: list[CaseResult],
) -> None:
    """Appends each case's result to `results` as it comes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    timers = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *timers, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.label)
            able = [contender for contender in contenders if not (case.training and is_peer(contender))]
            results.append(measure_case(case, able, options.budget, options.memory, baseline))
            progress.advance(task)


def write_files(results: list[CaseResult], where: dict[str, Any], options: argparse.Namespace) -> None:
    """Writes what --json and --plot ask for. Raises OSError."""
    if options.json is not None:
        plain = {name: value for name, value in vars(options).items() if name not in ("json", "plot")}
        report.write_json(options.json, report.to_json(results, where, plain))
    if options.plot is not None and results:
        from benchmarks.plot import write_plot

        write_plot(options.plot, results, where)


if __name__ == "__main__":
    sys.exit(main())
