"""What drawings of nets are made of, on the ground that all pictures have: boxes, knots, arrows; y goes upwards."""

from __future__ import annotations

import ground
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

HERE, INK, PALE, pyplot = ground.HERE, ground.INK, ground.MUTED, ground.pyplot
BLUE, ORANGE, GREEN = "#cfe3f6", "#fbdcb4", "#d3ecd0"
STRONG_BLUE, STRONG_ORANGE, STRONG_GREEN, STRONG_RED = "#2f74b5", "#c9761a", "#3c8a40", "#b53c3c"

# Formulas are made of parts that have to stay where they are, whatever fonts a reader has.
pyplot.rcParams.update({"svg.fonttype": "path", "mathtext.fontset": "dejavusans"})


def canvas(width: float, height: float) -> Axes:
    """Axes of width x height inches, one unit an inch."""
    axes = pyplot.figure(figsize=(width, height)).add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return axes


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
    ground.save(axes.figure, f"{name}.svg")
