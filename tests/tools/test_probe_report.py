"""What a probe says and shows: summaries and pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import probe_report
from tests.tools.unrolled import Model, at_the_last_step
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, pair, random


def probed(module: Any, x: Tensor) -> Any:
    with fastrnn.probe(module) as record:
        at_the_last_step(module(x)[0]).backward()
    return record


def scaled(kind: str, recurrent: float, inputs: float = 1.0) -> Any:
    module, _ = pair(kind)
    with torch.no_grad():
        module.weight_hh_l0.copy_(recurrent * torch.eye(HIDDEN))
        module.weight_ih_l0.mul_(inputs)
    return module


def test_the_summary_says_what_stands_out() -> None:
    x = random(40, BATCH, INPUT).abs()
    fading = probed(scaled("RNN_RELU", 0.5, 0), x).summary()
    growing = probed(scaled("RNN_RELU", 2.0), x).summary()
    saturated = probed(scaled("RNN_TANH", 1.0, 100), x).summary()
    steady = probed(scaled("RNN_RELU", 1.0), x)
    assert "gradients vanish: × 0.5 a step, a thousandth within 10 of 40 steps" in fading
    assert "gradients explode: × 2 a step, a thousandfold within 10 of 40 steps" in growing
    assert "of h are saturated" in saturated
    assert "gradients" not in steady.summary().split("\n", 1)[1]
    assert steady.summary() == steady["RNN"].summary()
    headers, row, *_ = steady.summary().splitlines()
    assert [headers.index("gradient a step"), "× 1"] == [row.index("× 1"), row[row.index("× 1") :]]


def test_the_factor_of_a_step_is_a_geometric_mean() -> None:
    """What gradients gain and lose again has no effect."""
    figures: Any = SimpleNamespace(gradient_gains=torch.tensor([[4, 0.25, 4, 0.25, float("nan")]]))
    assert probe_report._factor(figures, 0) == pytest.approx(1)


def test_the_summary_of_what_went_wrong() -> None:
    module, _ = pair("RNN_TANH")
    x = random(TIME, BATCH, INPUT)
    x[2] = float("nan")
    summary = probed(module, x).summary()
    assert "h is not finite" in summary
    assert "the gradient of h is not finite" in summary
    assert "no gradient arrives" not in summary
    with fastrnn.probe(module) as record:
        (0 * module(random(TIME, BATCH, INPUT))[0]).sum().backward()
    assert "no gradient arrives" in record.summary()


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    loaded = set(sys.modules)
    model = Model()
    with fastrnn.probe(model) as record:
        at_the_last_step(model(random(TIME, BATCH, INPUT))).backward()
        model.unused(torch.zeros(BATCH, INPUT))
    picture = record.plot(tmp_path / "gates.png")
    assert (tmp_path / "gates.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in set(sys.modules) - loaded
    axes = picture.axes
    assert len(axes) == 4 * 3
    assert [axes[3 * row].get_ylabel() for row in range(4)] == [
        "encoder.lstm layer 0", "encoder.lstm layer 1", "decoder", "unused"
    ]  # fmt: skip
    figures = record["encoder.lstm"]
    for column, lines in enumerate((figures.gate_means, figures.saturation)):
        assert {line.get_label(): list(line.get_ydata()) for line in axes[3 + column].lines} == {
            name: values[1].tolist() for name, values in lines.items()
        }
    flow = axes[5]
    assert flow.get_yscale() == "log"
    assert [line.get_label() for line in flow.lines] == ["dL/dh", "dL/dc"]
    assert list(flow.lines[0].get_ydata()) == figures.gradient_norms["h"][1].tolist()
    lowest, highest = flow.get_ylim()
    assert lowest < figures.gradient_norms["h"][1].min() < figures.gradient_norms["h"][1].max() < highest
    assert [text.get_text() for text in axes[11].texts] == ["no backward"]
    assert len(figures.plot().axes) == 2 * 3


def test_plot_without_figures_or_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    with fastrnn.probe(fastrnn.GRU(3, 3)) as record:
        pass
    assert record.summary() == "GRU: not called"
    if "matplotlib.figure" in sys.modules:
        with pytest.raises(ValueError, match="nothing to plot, no layer has been called"):
            record.plot()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="probe: plot needs matplotlib; pip install matplotlib"):
        record.plot()
