"""How a probe's figures are shown: as a table of text, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastrnn.probe_figures import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTABLE = 1e-3
"""A gradient that falls to this share within the sequence, or grows by its inverse, is pointed out."""
SATURATED = 0.5
"""A gate of which more than this share is saturated, over all steps, is pointed out."""

_HEADERS = ("", "gates' means", "saturated", "‖h‖ first … last", "‖dL/dh‖ first … last", "gradient a step")

# Okabe and Ito's colours, which people tell apart whatever colours they see; other names have matplotlib's.
_COLOURS = {
    "i": "#0072B2",
    "f": "#D55E00",
    "g": "#009E73",
    "o": "#CC79A7",
    "r": "#0072B2",
    "z": "#D55E00",
    "n": "#009E73",
    "h": "#56B4E9",
    "dL/dh": "#000000",
    "dL/dc": "#E69F00",
}
_COLUMNS = ("mean activation", "saturated units", "norm of the loss's gradient")
_LEGEND = 20
"""Points that a legend above the axes takes."""
_MARKED = 30
"""Steps up to which each is marked by a dot: a line through one or two of them would not show."""


def summary(record: Mapping[str, Figures]) -> str:
    """A row for each layer and direction, then what stands out; empty for no figures."""
    rows, remarks = [], []
    for title, figures, row in _rows(record):
        rows.append((title, *_cells(figures, row)))
        remarks += [f"{title}: {remark}" for remark in _remarks(figures, row)]
    if not rows:
        return ""
    widths = [max(len(line[column]) for line in (_HEADERS, *rows)) for column in range(len(_HEADERS))]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (_HEADERS, *rows)]
    return "\n".join([*table, *remarks])


def _rows(record: Mapping[str, Figures]) -> Iterator[tuple[str, Figures, int]]:
    """Each row of figures with a title."""
    for name, figures in record.items():
        names = figures.rows
        for row, of_row in enumerate(names):
            yield (name if len(names) == 1 else f"{name} {of_row}"), figures, row


def _cells(figures: Figures, row: int) -> tuple[str, ...]:
    means = " ".join(f"{gate} {_mean(values[row]):.2f}" for gate, values in figures.gate_means.items())
    saturated = " ".join(f"{gate} {_mean(values[row]):.0%}" for gate, values in figures.saturation.items())
    norms = _ends(_of_output(figures.state_norms)[row])
    if figures.gradient_norms is None:
        return means, saturated, norms, "no backward", ""
    factor = _factor(figures, row)
    gradients = _ends(_of_output(figures.gradient_norms)[row])
    return means, saturated, norms, gradients, "" if factor is None else f"× {factor:.2g}"


def _of_output(norms: Mapping[str, Tensor]) -> Tensor:
    """Those of the first state, which is the output."""
    return next(iter(norms.values()))


def _remarks(figures: Figures, row: int) -> Iterator[str]:
    for name, norms in figures.state_norms.items():
        if bool(norms[row].isinf().any() | (norms[row].isnan() & (figures.sequences > 0)).any()):
            yield f"{name} is not finite"
    for gate, values in figures.saturation.items():
        share = _mean(values[row])
        if share > SATURATED:
            what = "zero" if figures.activations[gate] == "relu" else "saturated"
            yield f"{share:.0%} of {gate} are {what}"
    if figures.gradient_norms is None:
        return
    for name, norms in figures.gradient_norms.items():
        arrived = norms[row][~norms[row].isnan()]
        if bool(arrived.isinf().any()) or len(arrived) < int((figures.sequences > 0).sum()):
            yield f"the gradient of {name} is not finite, or missing at some steps"
    alive = figures.sequences > 0
    if any(bool((norms[row][alive] != 0).any()) for norms in figures.gradient_norms.values()):
        yield from _remark_on_flow(figures, row)
    else:
        yield "no gradient arrives"


def _remark_on_flow(figures: Figures, row: int) -> Iterator[str]:
    factor, steps = _factor(figures, row), figures.sequences.numel()
    if factor is None:
        return
    slope, notable = math.log(factor) if factor > 0 else -math.inf, -math.log(NOTABLE)
    if abs(slope) * steps > notable:
        what, share = ("vanish", "thousandth") if slope < 0 else ("explode", "thousandfold")
        within = max(1, math.ceil(notable / abs(slope)))
        yield f"gradients {what}: × {factor:.2g} a step, a {share} within {within} of {steps} steps"


def _factor(figures: Figures, row: int) -> float | None:
    """The geometric mean of the row's gradient gains; None where there are none."""
    if figures.gradient_gains is None:
        return None
    gains = figures.gradient_gains[row]
    gains = gains[gains.isfinite()]
    return float(gains.log().mean().exp()) if len(gains) else None


def _mean(values: Tensor) -> float:
    return float(values.nanmean())


def _ends(values: Tensor) -> str:
    """The first and the last value that is there."""
    there = values[~values.isnan()].tolist()
    return f"{there[0]:.2g} … {there[-1]:.2g}" if there else "none"


def plot(record: Mapping[str, Figures], path: str | Path | None) -> Figure:
    """See `Record.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("probe: plot needs matplotlib; pip install matplotlib") from error
    rows = list(_rows(record))
    if not rows:
        raise ValueError("probe: nothing to plot, no layer has been called")
    picture = Figure(figsize=(13, 0.5 + 2.1 * len(rows) + 0.3 * len(record)), layout="constrained")
    axes = picture.subplots(len(rows), len(_COLUMNS), squeeze=False)
    for of_row, (title, figures, row) in zip(axes, rows, strict=True):
        _plot_row(of_row, title, figures, row)
    for top, bottom, title in zip(axes[0], axes[-1], _COLUMNS, strict=True):
        top.set_title(title, loc="left", pad=6 + _LEGEND * (top.get_legend() is not None), fontweight="bold")
        bottom.set_xlabel("time step")
    if path is not None:
        picture.savefig(path, dpi=150)
    return picture


def _plot_row(axes: Any, title: str, figures: Figures, row: int) -> None:
    from matplotlib.ticker import MaxNLocator

    means, saturation, flow = axes
    means.set_ylabel(title)
    last = figures.sequences.numel() - 1
    for one in axes:
        one.set_xlim(-0.02 * last - 0.1, 1.02 * last + 0.1)
        one.xaxis.set_major_locator(MaxNLocator(min_n_ticks=1, integer=True))
    _lines(means, row, figures.gate_means)
    kinds = set(figures.activations.values())
    if "relu" not in kinds:
        means.set_ylim(-1.05, 1.05)
    elif "tanh" not in kinds:
        means.set_ylim(bottom=0)
    _lines(saturation, row, figures.saturation)
    saturation.set_ylim(-0.05, 1.05)
    saturation.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    gradients = {f"dL/d{name}": norms for name, norms in (figures.gradient_norms or {}).items()}
    # A logarithmic axis has no zero: a state that no gradient reaches has no line there.
    gradients = {name: norms.where((norms > 0) & norms.isfinite(), torch.nan) for name, norms in gradients.items()}
    there = [math.log10(norm) for norms in gradients.values() for norm in norms[row].tolist() if norm > 0]
    _lines(flow, row, gradients)
    if there:
        flow.set_yscale("log")
        flow.set_ylim(0.8 * 10.0 ** math.floor(min(there)), 1.25 * 10.0 ** math.ceil(max(there)))
    else:
        reason = "no backward" if figures.gradient_norms is None else "no gradient arrives"
        flow.text(0.5, 0.5, reason, ha="center", va="center", transform=flow.transAxes, color="0.4")
        flow.set_yticks([])


def _lines(axes: Axes, row: int, lines: Mapping[str, Tensor]) -> None:
    """A row of each of `lines`, in a layer's first row with a legend above the axes, where it hides nothing."""
    for name, values in lines.items():
        heights = values[row].tolist()
        marker = "." if len(heights) <= _MARKED else None
        axes.plot(range(len(heights)), heights, label=name, color=_COLOURS.get(name), marker=marker, linewidth=1.4)
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if lines and row == 0:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(lines), frameon=False, handlelength=1.4)
