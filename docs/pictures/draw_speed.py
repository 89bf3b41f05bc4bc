"""Pictures of speed against size, from the committed results.

`speed.svg` has torch.nn's time over fastrnn's at all measured shapes, `speed-peers.svg` that of the fastest peer, and
`speed-step.svg` the microseconds of a step of one sequence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from canvas import HERE, INK, PALE, STRONG_BLUE, STRONG_ORANGE, STRONG_RED, lay_ground, save
from diagram import GREY
from matplotlib import pyplot
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import StrMethodFormatter

RESULTS = HERE.parents[1] / "benchmarks" / "results"
INFERENCE, TRAINING = "cpu-inference-and-peers.json", "cpu-training.json"
CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN"}
OURS, TORCH = "fastrnn auto", "torch.nn"
FEW_STEPS = 20
"""Below this, shapes are shown apart: weights are laid out in every call."""
UNITS = (32, 64, 128, 256, 512, 1024)
RATIOS = (0.3, 0.5, 1, 2, 5, 10, 20, 40)
MARGINS = ConstrainedLayoutEngine(rect=(0.015, 0.03, 0.97, 0.88))
"""Around what is drawn, as shares of the figure: its ground has an edge."""
LOOK = {
    "axes.edgecolor": PALE,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "xtick.color": INK,
    "ytick.color": INK,
}
BESIDE = 1.06
"""Points of training stand so much to the right of their size, and those of inference to the left."""


class Point(NamedTuple):
    """One case of one file."""

    cell: str
    mode: str
    T: int
    B: int
    I: int
    H: int
    seconds: dict[str, float]
    """medians, by contender"""
    ratio: float
    """torch.nn's time over ours, median over rounds"""
    peer_ratio: float | None
    """the same of the fastest of torch.nn and the peers, where there were peers"""


def points(name: str) -> list[Point]:
    """The cases of a file of `python -m benchmarks --json`."""
    found = []
    for case in json.loads((RESULTS / name).read_text())["cases"]:
        entries = {entry["contender"]: entry for entry in case["contenders"]}
        ours = entries[OURS]
        peer = ours.get("peer_ratio")
        found.append(
            Point(
                case["cell"],
                case["mode"],
                **case["shape"],
                seconds={name: entry["seconds"]["median"] for name, entry in entries.items() if "seconds" in entry},
                ratio=ours["ratio"]["median"],
                peer_ratio=peer and peer["median"],
            )
        )
    return found


def over_units(axis: Any) -> None:
    """A logarithmic axis of hidden sizes."""
    axis.set_xscale("log")
    axis.set_xlim(26, 1300)
    axis.set_xticks(UNITS, [str(units) for units in UNITS], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel("H, hidden units")
    axis.grid(linewidth=0.4, color="#d5d5d0")


def scatter(found: Iterable[Point], ratio: Callable[[Point], float], name: str, label: str, title: str) -> None:
    """A panel for each cell: a ratio at each shape, the modes and the calls of few steps told apart."""
    found = list(found)
    figure, axes = pyplot.subplots(1, 3, figsize=(8, 3.1), sharey=True, layout=MARGINS)
    kinds = (
        ("training, 20 steps or more", "training", False, "s", STRONG_ORANGE, BESIDE),
        ("inference, 20 steps or more", "inference", False, "o", STRONG_BLUE, 1 / BESIDE),
        ("calls of 1 or 10 steps", "", True, "x", INK, 1),
    )
    for axis, cell in zip(axes, CELLS, strict=True):
        for text, mode, few, marker, color, beside in kinds:
            chosen = [p for p in found if p.cell == cell and (p.T < FEW_STEPS) == few and p.mode.startswith(mode)]
            if not chosen:
                continue
            look = {"c": color} if marker == "x" else {"facecolors": color, "edgecolors": "none"}
            places = [p.H * beside for p in chosen], [ratio(p) for p in chosen]
            axis.scatter(*places, s=18, marker=marker, linewidths=0.9, label=text, **look)
        axis.axhline(1, color=INK, linewidth=1)
        axis.axhspan(RATIOS[0] / 2, 1, color="#f5dcdc", linewidth=0, zorder=0)
        axis.set_yscale("log")
        axis.set_ylim(RATIOS[0] * 0.9, 48)
        over_units(axis)
        axis.set_yticks(RATIOS, [f"{value:g}" for value in RATIOS])
        axis.minorticks_off()
        axis.set_title(CELLS[cell], fontsize=10)
        axis.set_xlabel("")
    axes[1].set_xlabel("H, hidden units")
    axes[0].set_ylabel(label)
    axes[0].annotate("fastrnn is slower here", (28, RATIOS[0]), fontsize=8, color=STRONG_RED)
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(title, y=0.965, fontsize=9, color=PALE)
    lay_ground(figure)
    save(axes[0], name)


def steps(found: Iterable[Point]) -> None:
    """Microseconds of a step of one sequence: a row for each mode, a panel for each cell."""
    single = [p for p in found if p.B == 1 and p.T >= FEW_STEPS]
    modes = list(dict.fromkeys(p.mode for p in single))
    figure, axes = pyplot.subplots(len(modes), 3, figsize=(8, 5), sharex=True, sharey="row", layout=MARGINS)
    for row, mode in zip(axes, modes, strict=True):
        for axis, cell in zip(row, CELLS, strict=True):
            for name, color, style in ((TORCH, GREY, "--"), (OURS, STRONG_BLUE, "-")):
                line = sorted((p.H, p.seconds[name] / p.T * 1e6) for p in single if (p.cell, p.mode) == (cell, mode))
                best = dict(reversed(line))  # of one size the fastest: the other has wider inputs or more steps
                text = "fastrnn" if name == OURS else name
                axis.plot(best.keys(), best.values(), style, marker="o", markersize=4, color=color, label=text)
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            over_units(axis)
            axis.set_xlabel("H, hidden units" if mode == modes[-1] else "")
            axis.set_title(f"{CELLS[cell]}, {mode}", fontsize=10)
        row[0].set_ylabel("µs a step")
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.suptitle("One sequence, 50 to 1000 steps, float32, two cores with AVX-512", y=0.975, fontsize=9, color=PALE)
    lay_ground(figure)
    save(axes[0][0], "speed-step")


def main() -> None:
    pyplot.rcParams.update(LOOK)
    inference, training = points(INFERENCE), points(TRAINING)
    where = "float32, two cores of a Xeon with AVX-512, torch 2.13"
    scatter(
        [*inference, *training],
        lambda point: point.ratio,
        "speed",
        "torch.nn's time / fastrnn's",
        f"29 shapes of each cell, 1 to 256 sequences; {where}",
    )
    scatter(
        inference,
        lambda point: point.peer_ratio or point.ratio,
        "speed-peers",
        "fastest peer's time / fastrnn's",
        f"The fastest of torch.nn, ONNX Runtime and OpenVINO; {where}",
    )
    steps([*inference, *training])


main()
