"""How the pictures of these pages look: a light, rounded ground of their own, so that they read on any page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).parent
GROUND, INK, MUTED = "#fbfaf7", "#222222", "#6b6b6b"
BLUE, ORANGE, GREEN, RED, GREY = "#3b73b9", "#d9822b", "#3f9a5a", "#c04646", "#9a9a9a"
PALE = {BLUE: "#dbe6f4", ORANGE: "#fae6d0", GREEN: "#dcefe1", RED: "#f5dcdc", GREY: "#ececea"}
"""A filling for each colour of lines."""
CORNER = 0.12
"""Inches of the ground's rounded corners."""

pyplot.rcParams.update(
    {
        "axes.edgecolor": MUTED,
        "axes.facecolor": "none",
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.size": 9,
        "svg.fonttype": "none",  # text stays text: small files, and it can be searched
        "svg.hashsalt": "fastrnn",  # the same bytes from run to run
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
)


def save(figure: Any, name: str) -> None:
    """Writes the figure beside this file, as SVG, upon its ground."""
    width, height = figure.get_size_inches()
    ground = FancyBboxPatch(
        (CORNER, CORNER),
        width - 2 * CORNER,
        height - 2 * CORNER,
        boxstyle=f"round,pad={CORNER}",
        facecolor=GROUND,
        edgecolor="none",
        transform=figure.dpi_scale_trans,
        zorder=-10,
    )
    figure.add_artist(ground)
    figure.savefig(HERE / name, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches, and axes over all of it whose unit is an inch, (0, 0) being at the top left."""
    figure = pyplot.figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_axis_off()
    return figure, axis


def box(
    axis: Any,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str = "",
    colour: str = BLUE,
    size: float = 9,
    fill: str | None = None,
    **words: Any,
) -> None:
    """A rounded box with its top left corner at (x, y), and text in its middle."""
    axis.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=PALE[colour] if fill is None else fill,
            edgecolor=colour,
            linewidth=1,
        )
    )
    write(axis, x + width / 2, y + height / 2, text, size, **words)


def write(axis: Any, x: float, y: float, text: str, size: float = 9, colour: str = INK, **words: Any) -> None:
    """Text around a point; `ha="left"` begins there."""
    axis.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": size, "color": colour, **words})


def code(axis: Any, x: float, y: float, text: str, size: float = 8, colour: str = INK) -> None:
    """Lines of code, from their top left corner on."""
    # SVG makes one space of several, and matplotlib strips those that a line begins with.
    kept = "\n".join(f"\N{ZERO WIDTH SPACE}{line}" for line in text.replace(" ", "\N{NO-BREAK SPACE}").split("\n"))
    write(axis, x, y, kept, size, colour, ha="left", va="top", family="monospace")


def arrow(axis: Any, start: tuple[float, float], end: tuple[float, float], colour: str = INK, **shape: Any) -> None:
    """From one point to another."""
    shape = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0, **shape}
    axis.add_patch(FancyArrowPatch(start, end, color=colour, **shape))
