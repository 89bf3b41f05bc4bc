"""Parts of diagrams that are read from the top: y goes downwards, and boxes stand by their top left corners."""

from __future__ import annotations

from canvas import INK, STRONG_BLUE, STRONG_GREEN, STRONG_ORANGE, STRONG_RED, canvas, label
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

GREY = "#9a9a9a"
FILLINGS = {
    STRONG_BLUE: "#dbe6f4",
    STRONG_ORANGE: "#fae6d0",
    STRONG_GREEN: "#dcefe1",
    STRONG_RED: "#f5dcdc",
    GREY: "#ececea",
}
"""Of boxes, by the colour of their lines."""


def page(width: float, height: float) -> Axes:
    """A canvas whose (0, 0) is the top left corner."""
    axes = canvas(width, height)
    axes.set_ylim(height, 0)
    return axes


def field(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str = STRONG_BLUE, size: float = 8
) -> None:
    """A rounded box with its top left corner at (x, y), and text in its middle."""
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.05")
    shape.set(facecolor=FILLINGS[color], edgecolor=color, linewidth=1)
    axes.add_patch(shape)
    label(axes, x + width / 2, y + height / 2, text, size)


def code(axes: Axes, x: float, y: float, text: str, size: float = 7.5) -> None:
    """Lines of code, from their top left corner on."""
    label(axes, x, y, text, size, ha="left", va="top", family="monospace")


def link(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK, **options: object) -> None:
    """An arrow from one point to another, of any style."""
    look = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0, **options}
    axes.add_patch(FancyArrowPatch(start, end, color=color, **look))
