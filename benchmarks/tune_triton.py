"""`python -m benchmarks.tune_triton`: which tile a persistent Triton kernel runs fastest with.

Every candidate is compiled in its leanest and in its largest variant; what moves registers to memory inside the time
loop, or needs more shared memory than a block can have, is out. With a GPU the others are timed, side by side, by the
backend's own way to them. Without one they are ranked by a guess at the cycles of a step from its instructions and its
barriers, which is no measurement.

The exit status is 0 if every kernel asked for has a candidate left, 1 if one has none, 2 if the command line was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import cuda, timing, triton_compile
from benchmarks.command_line import FAILURE, OK, USAGE_ERROR, UsageError, check_output, console_for_tables
from benchmarks.triton_compile import CAPABILITIES, SHARED_MEMORY, Compiled, Kernel, Variant, compile_all

FORMAT = 1
"""Of the JSON."""
PRECISIONS = {"16 bit": ("bfloat16", "float16"), "tf32": ("float32",), "tf32x3": ("float32",)}
"""Of the recurrent product, and the storage dtypes that are multiplied so."""
VARIANTS = {
    "forward": (triton_compile.INFERENCE, triton_compile.TRAINING, triton_compile.MASKED),
    "backward": (triton_compile.TRAINING, triton_compile.MASKED, triton_compile.MASKED_LEAN),
}
"""By direction; the first is counted and timed, all must fit."""
BATCHES = {"forward": (8, 16, 32), "backward": (16, 32)}
"""From the least that the tensor cores take, see `fastrnn.backends.triton.configurations`."""
WARPS = (2, 4, 8, 16)
SCHEDULERS = 4
"""Of a multiprocessor; each issues one instruction of a warp a cycle."""
CYCLES_OF_AN_INSTRUCTION = 4
"""Of arithmetic, until the next instruction of the warp can take its result."""
CYCLES_OF_A_BARRIER = 30
"""A guess: about the latency of shared memory."""
KIB = 1024
BUDGET = 0.5
"""Seconds that a candidate is timed."""
PLAIN_WIDTH = 160
"""Columns of the table in a file or a pipe."""


class Candidate(NamedTuple):
    """A kernel with a tile, in all variants and on all architectures asked for."""

    kernel: Kernel
    """in its first variant on the first architecture"""
    compiled: Compiled | str
    """that one, or why there is none"""
    shared_memory: int
    """bytes, the most of all"""
    rejected: str
    """why it is out, or nothing"""
    seconds: float | None = None
    """of a step, measured"""

    @property
    def instructions(self) -> int:
        """Of a warp in a step."""
        return self.compiled.assembly.instructions if isinstance(self.compiled, Compiled) else 0

    @property
    def issue_cycles(self) -> float:
        """That a step's instructions take to be issued where the program has the multiprocessor to itself."""
        return self.instructions * self.kernel.tile[1] / SCHEDULERS if self.kernel.tile else 0.0

    @property
    def guessed_cycles(self) -> float:
        """Of a step, if every instruction waited for the one before it."""
        barriers = self.compiled.assembly.barriers if isinstance(self.compiled, Compiled) else 0
        waiting = CYCLES_OF_AN_INSTRUCTION * self.instructions
        return max(waiting, self.issue_cycles) + CYCLES_OF_A_BARRIER * barriers

    @property
    def rank(self) -> tuple[bool, float, float]:
        """The best comes first: by time where it was measured, else by the guess; among equals the fewest warps."""
        return bool(self.rejected), self.seconds or self.guessed_cycles, self.issue_cycles


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    reason = triton_compile.missing()
    try:
        check_output("--output", options.output)
    except UsageError as error:
        reason = str(error)
    if options.precision not in PRECISIONS or options.dtype not in PRECISIONS[options.precision]:
        reason = f"--dtype: {options.dtype} is not multiplied in {options.precision}"
    if reason is not None:
        print(f"{parser.prog}: error: {reason}", file=sys.stderr)
        return USAGE_ERROR
    found: list[list[Candidate]] = []
    console = console_for_tables(PLAIN_WIDTH)
    can_time = cuda.why_not() is None
    for cell, units, direction in product(options.cells, options.units, options.directions):
        candidates = compile_candidates(candidate_kernels(cell, units, direction, options), options.capabilities)
        if can_time:
            candidates = time_candidates(candidates, options.steps, options.batch)
        found.append(sorted(candidates, key=lambda candidate: candidate.rank))
        console.print(candidates_table(found[-1]))
    if not can_time:
        console.print("Ranked by a guess: nothing was timed, there is no GPU here.")
    if options.output is not None:
        options.output.write_text(json.dumps(to_json(found), indent=2) + "\n", encoding="utf-8")
    return FAILURE if any(candidates[0].rejected for candidates in found) else OK


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune_triton", description="Compares tiles of the persistent Triton kernels."
    )
    add = parser.add_argument
    add("--cells", nargs="+", choices=triton_compile.programs(), default=["lstm", "gru"])
    add("--units", nargs="+", type=int, default=[64], metavar="D", help="of a head")
    add("--directions", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    add("--dtype", default="bfloat16", help="of storage")
    add("--precision", default="16 bit", help=f"of the recurrent product: one of {', '.join(PRECISIONS)}")
    add("--warps", nargs="+", type=int, default=WARPS)
    add("--batches", nargs="+", type=int, help=f"sequences of a program; default: {BATCHES}")
    add("--stages", nargs="+", type=int, default=[3], help="steps that loads are ahead, plus one")
    add("--capabilities", nargs="+", type=int, choices=CAPABILITIES, default=default_capabilities())
    add("--steps", type=int, default=512, metavar="T", help="of what is timed")
    add("--batch", type=int, default=128, metavar="B", help="of what is timed")
    add("--output", type=Path, metavar="FILE", help="write the candidates as JSON, the best of each kernel first")
    return parser


def default_capabilities() -> list[int]:
    """The GPU's own where it is one of CAPABILITIES, else all: what is committed must serve each of them."""
    if cuda.why_not() is None:
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor in CAPABILITIES:
            return [10 * major + minor]
    return list(CAPABILITIES)


def candidate_kernels(cell: str, units: int, direction: str, options: argparse.Namespace) -> list[Kernel]:
    """A kernel for each tile and number of stages, in its first variant on the first architecture."""
    return [
        Kernel(
            direction,
            cell,
            options.precision,
            options.dtype,
            units,
            (batch, warps, 0),
            VARIANTS[direction][0],
            options.capabilities[0],
            stages,
            program=triton_compile.programs()[cell],
        )
        for batch in options.batches or BATCHES[direction]
        for warps in options.warps
        for stages in options.stages
    ]


def compile_candidates(kernels: list[Kernel], capabilities: Sequence[int]) -> list[Candidate]:
    """Compiles every variant for every architecture and says which candidates are out."""
    expanded = [variants_of(kernel, capabilities) for kernel in kernels]
    everything = [kernel for variants in expanded for kernel in variants]
    name = f"{kernels[0].direction} {kernels[0].cell} {kernels[0].units}"
    progress = track(
        compile_all(everything), name, len(everything), console=Console(stderr=True), transient=True, update_period=1.0
    )
    results = iter(list(progress))
    candidates = []
    for kernel, variants in zip(kernels, expanded, strict=True):
        compiled = [next(results) for _ in variants]
        shared = max((one.shared_memory for one in compiled if isinstance(one, Compiled)), default=0)
        reasons = filter(None, map(why_rejected, variants, compiled))
        candidates.append(Candidate(kernel, compiled[0], shared, next(reasons, "")))
    return candidates


def variants_of(kernel: Kernel, capabilities: Sequence[int]) -> list[Kernel]:
    """The kernel in all variants on all architectures, itself first."""

    def applies(variant: Variant) -> bool:
        recomputes = variant == triton_compile.MASKED_LEAN
        return not recomputes or bool(triton_compile.cell_of(kernel).saved)

    return [
        kernel._replace(variant=variant, capability=capability)
        for variant in VARIANTS[kernel.direction]
        if applies(variant)
        for capability in capabilities
    ]


def why_rejected(kernel: Kernel, compiled: Compiled | str) -> str | None:
    """Why a compiled variant cannot be used, or None."""
    where = f"sm_{kernel.capability}"
    if isinstance(compiled, str):
        return f"{where}: {compiled}"
    if compiled.assembly.spills:
        return f"{where}: {compiled.assembly.spills} spills a step"
    if not compiled.assembly.is_loop:
        return f"{where}: no product on the tensor cores"
    if compiled.shared_memory > SHARED_MEMORY[kernel.capability]:
        return f"{where}: {compiled.shared_memory // KIB} KiB of shared memory"
    return None


def time_candidates(
    candidates: list[Candidate], steps: int, batch: int, device: str = "cuda", budget: float = BUDGET
) -> list[Candidate]:
    """The candidates with the seconds of a step, those that are left timed in turns on `device`."""
    left = [candidate for candidate in candidates if not candidate.rejected]
    if not left:
        return candidates
    runs = [prepare(candidate.kernel, steps, batch, device) for candidate in left]
    burst = cuda.burst if device == "cuda" else timing.wall_burst
    timings = timing.interleave(runs, budget * len(runs), burst)
    seconds = {
        candidate.kernel: timing.summarize(one.seconds).median / steps
        for candidate, one in zip(left, timings, strict=True)
    }
    return [candidate._replace(seconds=seconds.get(candidate.kernel)) for candidate in candidates]


def prepare(kernel: Kernel, steps: int, batch: int, device: str) -> Callable[[], object]:
    """A call that runs the kernel, and the input's small product, on the GPU as a CUDA graph: no launch gaps."""
    layer = triton_compile.make_layer(kernel, steps, batch, device)
    recurrence = triton_compile.recurrence(kernel, layer)

    def run() -> object:
        with triton_compile.shape(kernel):
            return recurrence()

    if device != "cuda":
        return run
    return cuda.capture(run).replay


def candidates_table(candidates: list[Candidate]) -> Table:
    """The candidates of one kernel, the best first."""
    kernel = candidates[0].kernel
    title = f"{kernel.direction} {kernel.cell}, {kernel.units} units, {kernel.dtype} ({kernel.precision})"
    caption = (
        "of a step: instructions and barriers of a warp; issue: cycles that issuing all warps' instructions takes;\n"
        f"guess: cycles, {CYCLES_OF_AN_INSTRUCTION} an instruction and {CYCLES_OF_A_BARRIER} a barrier"
    )
    table = Table(box=SIMPLE_HEAD, title=title, caption=caption)
    headings = ("registers", "stack", "KiB", "instructions", "barriers", "issue", "guess", "µs")
    for heading in ("batch", "warps", "stages", *headings):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for candidate in candidates:
        tile, compiled = candidate.kernel.tile, candidate.compiled
        cells = [str(tile[0]), str(tile[1])] if tile else ["", ""]
        cells.append(str(candidate.kernel.stages))
        if isinstance(compiled, Compiled):
            figures = (compiled.registers, compiled.stack, round(candidate.shared_memory / KIB, 1))
            cycles = (round(candidate.issue_cycles), round(candidate.guessed_cycles))
            counts = (candidate.instructions, compiled.assembly.barriers)
            cells += [str(figure) for figure in (*figures, *counts, *cycles)]
        else:
            cells += [""] * len(headings[:-1])
        cells.append("" if candidate.seconds is None else f"{candidate.seconds * 1e6:.3f}")
        table.add_row(*cells, candidate.rejected, style="dim" if candidate.rejected else None)
    return table


def to_json(found: list[list[Candidate]]) -> dict[str, Any]:
    """What is left of the candidates, as JSON's types: sizes in bytes, times in seconds."""
    import triton

    gpu = torch.cuda.get_device_name() if cuda.why_not() is None else None
    return {
        "format": FORMAT,
        "triton": triton.__version__,
        "gpu": gpu,
        "rows": [row_json(candidate) for candidates in found for candidate in candidates if not candidate.rejected],
    }


def row_json(candidate: Candidate) -> dict[str, Any]:
    kernel, compiled = candidate.kernel, candidate.compiled
    assert isinstance(compiled, Compiled)
    assert kernel.tile is not None
    return {
        "direction": kernel.direction,
        "cell": kernel.cell,
        "precision": kernel.precision,
        "dtype": kernel.dtype,
        "units": kernel.units,
        "tile": {"batch": kernel.tile[0], "warps": kernel.tile[1], "shared_memory": candidate.shared_memory},
        "stages": kernel.stages,
        "registers": compiled.registers,
        "instructions": candidate.instructions,
        "barriers": compiled.assembly.barriers,
        "guessed_cycles": candidate.guessed_cycles,
        "seconds_a_step": candidate.seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
