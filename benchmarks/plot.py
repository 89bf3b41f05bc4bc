"""The ratios as a picture: a panel for each cell and mode, a bar for each shape and contender."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import baseline_name, machine_text, shape_text
from benchmarks.runner import CaseResult

PANEL_WIDTH, BAR_HEIGHT, PANEL_MARGIN = 5.5, 0.3, 0.9
"""Inches."""
DOTS_PER_INCH = 150
HALF_SPACE = 0.5
"""Of a shape, on either side of its tick: the first is at the top."""
BAR_SHARE = 0.8
"""Of the space of a shape, how much its bars fill."""
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
HEADROOM = 1.6
"""Factor between the longest bar and the right edge, where its figure stands."""
LEFT_EDGE, RIGHT_EDGE = 0.9, 1.1
"""The axis shows at least this much, so that the line at 1 is always seen."""


def write_plot(path: Path, results: Sequence[CaseResult], environment: dict[str, Any]) -> None:
    """Writes the ratios baseline / contender, on a logarithmic axis, with the quartiles as whiskers, as PNG.

    Raises OSError if the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = list(dict.fromkeys(result.case.cell for result in results))
    modes = list(dict.fromkeys(result.case.mode for result in results))
    contenders = list(dict.fromkeys(entry.contender for result in results for entry in result.entries))
    baseline = baseline_name(results)
    labels = list(dict.fromkeys(shape_text(result.case) for result in results))

    height = PANEL_MARGIN + BAR_HEIGHT * len(labels) * max(1, len(contenders))
    figure, axes = pyplot.subplots(
        len(cells),
        len(modes),
        figsize=(PANEL_WIDTH * len(modes), height * len(cells) + PANEL_MARGIN),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, cell in enumerate(cells):
        for column, mode in enumerate(modes):
            panel = [result for result in results if (result.case.cell, result.case.mode) == (cell, mode)]
            draw_panel(axes[row][column], panel, contenders, labels)
            axes[row][column].set_title(f"{cell} {mode}", fontsize="medium")
    set_axis(axes[0][0], results)
    axes[0][0].set_ylim(len(labels) - HALF_SPACE, -HALF_SPACE)
    for column in range(len(modes)):
        axes[-1][column].set_xlabel(f"{baseline} / contender\n(right of 1: the contender is faster)")
    if len(contenders) > 1:
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(contenders))
    version = environment["packages"].get(baseline.lower().removesuffix(".nn"))
    subject = contenders[0] if len(contenders) == 1 else "contenders"
    figure.suptitle(
        f"{subject} against {baseline}{'' if version is None else f' {version}'}\n{machine_text(environment)}",
        fontsize="medium",
    )
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")
    pyplot.close(figure)


def draw_panel(axis: Any, results: Sequence[CaseResult], contenders: Sequence[str], labels: Sequence[str]) -> None:
    """The bars of one cell and mode. They start at 1, so that their direction says who is ahead."""
    thickness = BAR_SHARE / max(1, len(contenders))
    for index, contender in enumerate(contenders):
        offset = (index - (len(contenders) - 1) / 2) * thickness
        for result in results:
            entry = next((entry for entry in result.entries if entry.contender == contender), None)
            if entry is None:
                continue
            y = labels.index(shape_text(result.case)) + offset
            if entry.ratio is None:
                axis.text(
                    1,
                    y,
                    f" {entry.status if entry.reason else 'no ratio'}",
                    va="center",
                    fontsize="x-small",
                    color="grey",
                )
                continue
            ratio = entry.ratio
            axis.barh(y, ratio.median - 1, thickness, left=1, color=f"C{index}", label=None)
            axis.plot((ratio.q1, ratio.q3), (y, y), color="black", linewidth=1)
            axis.text(max(1, ratio.median, ratio.q3), y, f"  {ratio.median:.2f}", va="center", fontsize="x-small")
        axis.barh(0, 0, 0, left=1, color=f"C{index}", label=contender)
    axis.set_yticks(range(len(labels)), labels)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.grid(axis="x", which="major", linewidth=0.4)
    axis.set_axisbelow(True)


def set_axis(axis: Any, results: Sequence[CaseResult]) -> None:
    """The logarithmic axis that all panels share."""
    ratios = [entry.ratio for result in results for entry in result.entries if entry.ratio is not None]
    left = min((LEFT_EDGE, *(min(ratio.q1, ratio.median) for ratio in ratios)))
    right = max((RIGHT_EDGE, *(max(ratio.q3, ratio.median) for ratio in ratios)))
    axis.set_xscale("log")
    axis.set_xlim(left / (RIGHT_EDGE), right * HEADROOM)
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.minorticks_off()
    axis.set_xlim(left / (RIGHT_EDGE), right * HEADROOM)
