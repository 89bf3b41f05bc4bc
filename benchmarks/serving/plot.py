"""Pictures: latency over units, by weights, for each cell, and steps a second over the streams that a call steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from benchmarks.serving.measure import ROW, Row
from benchmarks.serving.points import Point
from benchmarks.serving.report import grouped, steps_a_second
from benchmarks.serving.task import WEIGHTS

PANEL_INCHES = (4.8, 5.6)
DOTS_PER_INCH = 110
COLOURS = {"float32": "C0", "float16": "C2", "int8": "C3"}
MARKERS = "osv^Dx*P"
LEAST_SIZES = 2
"""Of a line."""


def write_plot(path: Path, rows: Sequence[Row], environment: dict[str, Any]) -> None:
    """Writes a panel for each cell, below them one for each size of those with slots, as PNG. Raises OSError.

    One thread, calls in a row, nothing else running. What has a single size is left out; nothing else, no file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.condition == ROW.name and row.threads == 1]
    single = [row for row in shown if row.point == Point(row.point.cell, row.point.H)]
    latency = {f"{cell}: a step of one stream": found for cell, found in grouped(single, cell_of).items()}
    slots = {
        f"{cell} of {H} units: a step of some of {total} streams": found
        for (cell, H, total), found in grouped([row for row in shown if row.point.slots], slots_of).items()
    }
    panels = [
        [(title, found) for title, found in group.items() if len({size(row) for row in found}) >= LEAST_SIZES]
        for group, size in ((latency, units_of), (slots, streams_of))
    ]
    panels = [row for row in panels if row]
    if not panels:
        return
    (width, height), columns = PANEL_INCHES, max(map(len, panels))
    figure, axes = pyplot.subplots(
        len(panels),
        columns,
        figsize=(width * columns, height * len(panels)),
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for line, across in zip(panels, axes, strict=True):
        for (title, found), axis in zip(line, across, strict=False):
            if found[0].point.slots:
                draw(axis, found, streams_of, lambda row: steps_a_second(row) / 1e3)
            else:
                draw(axis, found, units_of, lambda row: row.median * 1e6)
            axis.set_title(title, fontsize="medium")
        is_throughput = bool(line[0][1][0].point.slots)
        across[0].set_ylabel("thousands of steps a second" if is_throughput else "µs")
        for axis in across[: len(line)]:
            axis.set_xlabel("streams that a call steps" if is_throughput else "units")
        for axis in across[len(line) :]:
            axis.set_axis_off()
    figure.suptitle(f"{environment['cpu']}, {environment['cpu_capability']}, one thread", fontsize="medium")
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")
    pyplot.close(figure)


def cell_of(row: Row) -> str:
    return row.point.cell


def slots_of(row: Row) -> tuple[str, int, int]:
    return row.point.cell, row.point.H, row.point.slots


def units_of(row: Row) -> int:
    return row.point.H


def streams_of(row: Row) -> int:
    return row.point.B


def draw(axis: Any, rows: Sequence[Row], x: Any, y: Any) -> None:
    """A line for each contender and kind of weights: colours say which weights, markers who; peers' are dashed."""
    names = list(dict.fromkeys(row.contender for row in rows))
    for (name, weights), found in grouped(rows, lambda row: (row.contender, row.weights)).items():
        points = sorted((x(row), y(row)) for row in found)
        axis.plot(
            *zip(*points, strict=True),
            color=COLOURS[weights],
            marker=MARKERS[names.index(name) % len(MARKERS)],
            markersize=4,
            linestyle="-" if found[0].is_ours else "--",
            linewidth=1.8 if found[0].is_ours else 1,
            label=f"{name}, {weights}",
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    ticks = sorted({x(row) for row in rows})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(which="major", linewidth=0.4)
    axis.legend(fontsize="xx-small", loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


assert set(COLOURS) == set(WEIGHTS)
