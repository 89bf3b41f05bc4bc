"""`python -m benchmarks.own_cells`: cells of one's own, trained, against torch loops and JAX's scans.

Each contender computes one layer from zero states, its output and every gradient, the input's included. The loop is
what a user would write: one product with the input for all steps, then the step in plain torch, one after the other;
of the LSTM with layer normalisation TorchScript compiles another, for which torch has an example.
JAX compiles the same in a process of its own (`benchmarks.peers`), as `jax.lax.scan`, and of a cell that is linear in
its state as `jax.lax.associative_scan` too, for which such cells were made. Everybody's results are compared with the
reference in float64 before anything is timed.

For cells without a product with the state it is also told how long the rest takes, beside the input's products, in
times of what reading and writing its bytes would take: see `floor`.

The exit status is as that of `python -m benchmarks`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table
from torch import Tensor

import fastrnn
from benchmarks import environment, layer_norm_lstm, report, timing
from benchmarks.cases import Shape, parse_shapes
from benchmarks.command_line import (
    FAILURE,
    OK,
    USAGE_ERROR,
    UsageError,
    check_output,
    console_for_tables,
    known,
    listed,
    positive_float,
    positive_int,
)
from benchmarks.peers.contender import TOLERANCE, PeerRun
from benchmarks.peers.process import PeerFailed, PeerProcess
from benchmarks.peers.task import CellTask
from fastrnn.cells import Cell, library
from tests.tolerances import FACTOR, FLOOR, relative_error

CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (library.peephole_lstm, library.mgu, library.layer_norm_lstm, library.indrnn, library.mingru)
}
INITS = {"layer_norm_lstm": layer_norm_lstm.INIT}
SCRIPTS = {"layer_norm_lstm": layer_norm_lstm.script}
"""A layer as a loop that TorchScript compiles, of the cells that have one."""
SHAPES = ("100x1x64x64", "100x32x256x256")
LINEAR, LONG = ("mingru",), ("4096x4x256x256",)
"""Cells that are linear in their state, and shapes that are measured of these alone."""
COPIED = 1 << 24
"""Numbers: 64 MB, more than caches hold."""
LOOP, SCRIPT, JAX, ASSOCIATIVE = "eager loop", "TorchScript loop", "jax.lax.scan", "jax.lax.associative_scan"
PEERS = {JAX: "JaxScan", ASSOCIATIVE: "JaxAssociativeScan"}
"""The classes of `benchmarks.peers.jax_scan`."""
FORMAT = 1
"""Of the JSON."""


@dataclass
class Result:
    """One cell at one shape."""

    cell: str
    shape: Shape
    seconds: dict[str, timing.Summary]
    ratios: dict[str, timing.Summary]
    """Each other's time over fastrnn's."""
    floor: float | None
    """Of cells without a product of the state: fastrnn's time with a single input, beyond that input's products, over
    what its bytes take at the bandwidth of a copy, which reads and writes each."""


def layer_of(cell: Cell, shape: Shape) -> tuple[fastrnn.Recurrent, Tensor, Tensor]:
    """A layer, its input (T, B, I) and the gradient of its output (T, B, H), the same in every call."""
    T, B, I, H = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = fastrnn.Recurrent(cell, I, H, init=INITS.get(cell.name))
        return layer, torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, H)


def trained(forward: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor], dy: Tensor) -> Any:
    """A run: the output, the gradient of x, and those of the parameters."""

    def run() -> list[Tensor]:
        output = forward(x)
        return [output, *torch.autograd.grad(output, (x, *parameters), dy)]

    return run


def loop(layer: fastrnn.Recurrent) -> Callable[[Tensor], Tensor]:
    """The layer as a loop in plain torch."""
    cell, gates = layer.cell, (len(layer.cell.x_gates), len(layer.cell.u_gates))
    given = dict(layer.named_parameters())
    own = tuple(given[f"{name}_l0"] for name in cell.parameters)

    def forward(x: Tensor) -> Tensor:
        gx = F.linear(x, given["weight_ih_l0"], given["bias_ih_l0"]).unflatten(-1, (gates[0], -1))
        states = (x.new_zeros(x.shape[1], layer.hidden_size),) * len(cell.states)
        gh, output = x.new_empty(0), []
        for step in gx:
            if gates[1]:
                gh = F.linear(states[0], given["weight_hh_l0"], given["bias_hh_l0"]).unflatten(-1, (gates[1], -1))
            states = cell.step(step, gh, states, own)[0]
            output.append(states[0])
        return torch.stack(output)

    return forward


def floor(cell: Cell, shape: Shape) -> tuple[Callable[[], object], ...]:
    """What trains a layer of a single input, so that next to nothing is multiplied; what computes its input's products,
    forward and backward; and what copies `COPIED` numbers."""
    T, B, _, H = shape
    layer, x, dy = layer_of(cell, Shape(T, B, 1, H))
    rows, w = x.detach().flatten(0, 1), layer.weight_ih_l0.detach()
    d = torch.randn(T * B, w.shape[0])
    source = torch.randn(COPIED)
    target = torch.empty_like(source)
    narrow = trained(lambda x: layer(x)[0], x, list(layer.parameters()), dy)
    return narrow, lambda: (rows @ w.T, d @ w, d.T @ rows), lambda: target.copy_(source)


def numbers(cell: Cell, shape: Shape) -> int:
    """How many a pass over the steps reads and writes beside the products: forward the shares of the input, the states
    and what is saved, backward the last two, the output's gradient and the blocks."""
    kept = len(cell.states) + len(cell.saved)
    return (len(cell.x_gates) + kept + kept + 1 + len(cell.blocks)) * shape.T * shape.B * shape.H


def measure(name: str, shape: Shape, peers: dict[str, PeerProcess], budget: float) -> Result:
    """Races everybody on one cell and shape. Raises ValueError where results are wrong, PeerFailed of JAX."""
    cell = CELLS[name]
    layer, x, dy = layer_of(cell, shape)
    parameters = list(layer.parameters())
    runs = {
        "fastrnn": trained(lambda x: layer(x)[0], x, parameters, dy),
        LOOP: trained(loop(layer), x, parameters, dy),
    }
    if name in SCRIPTS:
        runs[SCRIPT] = trained(SCRIPTS[name](layer), x, parameters, dy)
    for who, process in peers.items():
        if who != ASSOCIATIVE or name in LINEAR:
            process.ask("build", task_of(layer, x, dy))
            runs[who] = InAProcess(process)
    check(runs, layer, x, dy)
    bounds = () if cell.u_gates else floor(cell, shape)
    times = timing.interleave([*runs.values(), *bounds], budget)
    named = dict(zip(runs, times, strict=False))
    narrow, products, copy = ([timing.summarize(one.seconds).median for one in times[len(runs) :]] or [0.0] * 3)[:3]
    return Result(
        name,
        shape,
        {one: timing.summarize(t.seconds) for one, t in named.items()},
        {one: timing.ratio(t, named["fastrnn"]) for one, t in named.items() if one != "fastrnn"},
        (narrow - products) / (copy * numbers(cell, shape) / (2 * COPIED)) if bounds else None,
    )


class InAProcess:
    """JAX's run; see `benchmarks.peers.contender.PeerRun`."""

    def __init__(self, process: PeerProcess) -> None:
        self.process = process

    def __call__(self) -> list[Tensor]:
        return [torch.from_numpy(array) for array in self.process.ask("run")]

    turn = PeerRun.turn


def task_of(layer: fastrnn.Recurrent, x: Tensor, dy: Tensor) -> CellTask:
    weights = {name.removesuffix("_l0"): value.detach().numpy() for name, value in layer.named_parameters()}
    cell, threads = layer.cell, torch.get_num_threads()
    gates = cell.x_gates, cell.u_gates
    return CellTask(cell.name, *gates, len(cell.states), weights, x.detach().numpy(), dy.numpy(), threads)


def check(runs: dict[str, Any], layer: fastrnn.Recurrent, x: Tensor, dy: Tensor) -> None:
    """Raises ValueError unless everybody's results are the reference's: fastrnn's as near as the loop's error allows,
    the loop's and JAX's as those of other peers."""
    exact = fastrnn.Recurrent(layer.cell, layer.input_size, layer.hidden_size, dtype=torch.float64, backend="reference")
    exact.load_state_dict(layer.state_dict())
    wide = x.detach().double().requires_grad_()
    names = ["output", "d x", *(f"d {name}" for name, _ in layer.named_parameters())]
    truth = trained(lambda x: exact(x)[0], wide, list(exact.parameters()), dy.double())()
    errors: dict[str, list[float]] = {}
    for who in (LOOP, *runs):
        found = zip(runs[who](), truth, strict=True)
        errors[who] = [relative_error(got.detach(), expected.detach()) for got, expected in found]
        for name, error, of_loop in zip(names, errors[who], errors[LOOP], strict=True):
            allowed = TOLERANCE if who == LOOP else FACTOR * of_loop + FLOOR[torch.float32]
            if not error <= (max(allowed, TOLERANCE) if who in (SCRIPT, *PEERS) else allowed):
                raise ValueError(f"{who}: {name} differs from the reference by {error:.2g}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        cells, shapes = known("cell", listed(options.cells), CELLS), parse_shapes(listed(options.shapes or SHAPES))
        if options.jax and importlib.util.find_spec("jax") is None:
            raise UsageError('jax is not installed: pip install "fastrnn[jax]", or leave it out with --no-jax')
        check_output("--json", options.json)
    except (UsageError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    where = environment.describe(peers=["jax"] if options.jax else [])
    points = [(name, shape) for name in cells for shape in shapes]
    if not options.shapes:
        points += [(name, shape) for name in cells if name in LINEAR for shape in parse_shapes(LONG)]
    peers = {who: PeerProcess(who, f"benchmarks.peers.jax_scan:{one}") for who, one in PEERS.items() if options.jax}
    results, failures = [], []
    try:
        for name, shape in track(points, transient=True):
            try:
                results.append(measure(name, shape, peers, options.budget))
            except (PeerFailed, ValueError) as error:
                failures.append(f"{name} {shape}: {error}")
    finally:
        for process in peers.values():
            process.close()
    console = console_for_tables()
    console.print(f"{report.machine_text(where)}", highlight=False)
    console.print(table(results))
    for failure in failures:
        console.print(failure, style="red", markup=False, highlight=False)
    if options.json is not None:
        report.write_json(options.json, {"format": FORMAT, "environment": where, "results": [*map(as_json, results)]})
    return FAILURE if failures else OK


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.own_cells", description=(__doc__ or "").split("\n\n")[0].split(": ", 1)[1]
    )
    add = parser.add_argument
    add("--cells", nargs="+", default=list(CELLS), metavar="CELL", help=f"of {', '.join(CELLS)}")
    add("--shapes", nargs="+", metavar="SHAPE", help="TxBxH or TxBxIxH; default: two, a third one of linear cells")
    add("--no-jax", dest="jax", action="store_false", help="leave JAX out")
    add("--threads", type=positive_int, metavar="N", help="default: torch's own choice")
    add("--budget", type=positive_float, default=5.0, metavar="SECONDS", help="for each cell and shape")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


def table(results: Sequence[Result]) -> Table:
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("cell", "TxBxIxH", "fastrnn"):
        shown.add_column(column)
    others = list(dict.fromkeys(name for result in results for name in result.ratios))
    for name in (*(f"{name} / fastrnn" for name in others), "beyond the products / copying"):
        shown.add_column(name, justify="right")
    for result in results:
        found = map(result.ratios.get, others)
        ratios = ["" if r is None else f"{r.median:.2f} ({r.q1:.2f} to {r.q3:.2f})" for r in found]
        bound = "" if result.floor is None else f"{result.floor:.2f}"
        fast = report.time_text(result.seconds["fastrnn"])
        shown.add_row(result.cell, str(result.shape), fast, *ratios, bound)
    return shown


def as_json(result: Result) -> dict[str, Any]:
    return {
        "cell": result.cell,
        "shape": list(result.shape),
        "seconds": {name: value._asdict() for name, value in result.seconds.items()},
        "ratios": {name: value._asdict() for name, value in result.ratios.items()},
        "floor": result.floor,
    }


if __name__ == "__main__":
    sys.exit(main())
