"""The race as a picture: speed over hidden sizes, and the time of a step beside the latencies that bound it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import BASELINE, GRAPH, Point, racers
from benchmarks.gpu.tables import NAMES

WIDTH, HEIGHT = 5.0, 3.6
"""Inches of a panel."""
DOTS_PER_INCH = 150
STEP_SIZE, STEP_DTYPE = (1024, 16), "float16"
"""Steps and sequences of the points whose time a step is shown: so many steps that what comes before is nothing. In
float16 torch.nn calls cuDNN."""
STYLES = {"bfloat16": "-", "float16": "--"}
"""Of lines, by dtype."""
FLOORS = {"cluster_exchange_16_ns": "exchange in a cluster of 16", "grid_exchange_64_ns": "exchange of 64 blocks"}


def draw(path: Path, found: Sequence[Point], ceilings: dict[str, Any], title: str) -> None:
    """Writes a PNG: LSTMs in 16 bits, a row of panels for each mode. Raises OSError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plain = [point for point in found if is_plain(point)]
    modes = list(dict.fromkeys(point.case.mode for point in plain))
    if not modes:
        return
    figure, axes = pyplot.subplots(
        len(modes), 2, figsize=(2 * WIDTH, HEIGHT * len(modes)), squeeze=False, layout="constrained"
    )
    for row, mode in zip(axes, modes, strict=True):
        chosen = [point for point in plain if point.case.mode == mode]
        draw_speeds(row[0], chosen)
        draw_steps(row[1], chosen, ceilings if mode == "inference" else {})
        row[0].set_title(f"{mode}: times as fast as torch.nn, the best kernel", fontsize="medium")
        row[1].set_title(f"{mode}: µs a step, {STEP_DTYPE}, T = {STEP_SIZE[0]}, B = {STEP_SIZE[1]}", fontsize="medium")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")
    pyplot.close(figure)


def is_plain(point: Point) -> bool:
    case = point.case
    only = case.layers == 1 and not case.bidirectional and not case.resets
    return only and case.cell == "lstm" and case.dtype in STYLES


def draw_speeds(axis: Any, found: Sequence[Point]) -> None:
    """A line for each dtype and number of steps and sequences, over hidden sizes."""
    kinds = dict.fromkeys((point.case.dtype, point.case.shape.T, point.case.shape.B) for point in found)
    for dtype, steps, batch in kinds:
        line = [
            (point.case.shape.H, best[1])
            for point in found
            if (point.case.dtype, point.case.shape.T, point.case.shape.B) == (dtype, steps, batch)
            and (best := point.best(GRAPH))
        ]
        if len(line) > 1:
            label = f"{dtype}, T = {steps}, B = {batch}"
            axis.plot(*zip(*sorted(line), strict=True), STYLES[dtype], marker="o", markersize=4, label=label)
    axis.axhline(1, color="black", linewidth=0.8)
    set_axes(axis, found, lambda value: f"{value:g}", (0.5, 1, 2, 5, 10))


def draw_steps(axis: Any, found: Sequence[Point], ceilings: dict[str, Any]) -> None:
    """A line for each racer, and the floors as dashes."""
    chosen = [
        point
        for point in found
        if (point.case.shape.T, point.case.shape.B) == STEP_SIZE and point.case.dtype == STEP_DTYPE
    ]
    for name in (BASELINE, *racers(found)):
        line = [
            (point.case.shape.H, time / STEP_SIZE[0]) for point in chosen if (time := point.microseconds(name, GRAPH))
        ]
        if line:
            axis.plot(*zip(*sorted(line), strict=True), marker="o", label=NAMES.get(name, name))
    for key, label in FLOORS.items():
        if key in ceilings:
            axis.axhline(ceilings[key] / 1e3, linestyle="--", color="grey", linewidth=0.8)
            axis.annotate(label, (64, ceilings[key] / 1e3), fontsize="x-small", color="grey", va="bottom")
    set_axes(axis, chosen, lambda value: f"{value:g}", (0.2, 0.5, 1, 2, 5, 10, 20))


def set_axes(axis: Any, found: Sequence[Point], text: Callable[[float], str], ticks: Sequence[float]) -> None:
    """Both logarithmic."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    sizes = sorted({point.case.shape.H for point in found})
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_yticks(ticks, [text(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("hidden size")
    axis.grid(linewidth=0.4)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize="x-small")
