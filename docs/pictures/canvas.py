"""What the drawings share: a light rounded ground of its own, so that a picture reads on light and on dark pages."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("svg")  # no window is needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).resolve().parent
GROUND, INK, PALE = "#fcfbf7", "#22303c", "#5f6e7a"
BLUE, ORANGE, GREEN, RED = "#cfe3f6", "#fbdcb4", "#d3ecd0", "#f6cfcf"
STRONG_BLUE, STRONG_ORANGE, STRONG_GREEN, STRONG_RED = "#2f74b5", "#c9761a", "#3c8a40", "#b53c3c"

mpl.rcParams.update({
    "svg.hashsalt": "fastrnn",  # the same drawing gives the same file
    "svg.fonttype": "path",  # and looks the same whatever fonts a reader has
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "text.color": INK,
})  # fmt: skip


def canvas(width: float, height: float) -> Axes:
    """Axes of width x height inches, one unit an inch, on a rounded ground; y goes upwards."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    lay_ground(figure)
    return axes


def lay_ground(figure: Figure) -> None:
    """The rounded ground of a figure."""
    width, height = figure.get_size_inches()
    ground = FancyBboxPatch((0.08, 0.08), width - 0.16, height - 0.16, boxstyle="round,pad=0.06,rounding_size=0.14")
    ground.set(facecolor=GROUND, edgecolor="#d8d4c7", linewidth=0.8, transform=figure.dpi_scale_trans, zorder=-1)
    figure.add_artist(ground)


def box(
    axes: Axes, x: float, y: float, text: str, color: str, width: float = 0.6, height: float = 0.42, size=11
) -> None:
    """A rounded box around (x, y)."""
    shape = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.07")
    shape.set(facecolor=color, edgecolor=INK, linewidth=1, zorder=3)
    axes.add_patch(shape)
    label(axes, x, y, text, size)


def knot(axes: Axes, x: float, y: float, text: str, color: str = "white", radius: float = 0.14) -> None:
    """A small circle with an operation in it."""
    axes.add_patch(Circle((x, y), radius, facecolor=color, edgecolor=INK, linewidth=1, zorder=3))
    label(axes, x, y, text, 11)


def label(axes: Axes, x: float, y: float, text: str, size: float = 10, color: str = INK, **options: object) -> None:
    """Text around (x, y)."""
    options = {"ha": "center", "va": "center", "zorder": 4, **options}
    axes.text(x, y, text, fontsize=size, color=color, **options)


def arrow(axes: Axes, *points: tuple[float, float], color: str = INK) -> None:
    """A line through the points with a head at its end."""
    line(axes, *points[:-1], color=color)
    look = {"arrowstyle": "-|>", "mutation_scale": 10, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.2, "zorder": 2}
    axes.add_patch(FancyArrowPatch(points[-2], points[-1], color=color, **look))


def line(axes: Axes, *points: tuple[float, float], color: str = INK) -> None:
    """A line through the points, without a head."""
    axes.plot(*zip(*points, strict=True), color=color, linewidth=1.2, zorder=2, solid_joinstyle="round")


def save(axes: Axes, name: str) -> None:
    """Writes `name`.svg beside the programs."""
    axes.figure.savefig(HERE / f"{name}.svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(axes.figure)
