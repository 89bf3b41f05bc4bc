"""`fastrnn.explain` of cells and of whole models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.explaining import ModelExplanation


class Halved(fastrnn.LSTM):
    """A forward with other arguments than the layer's."""

    def forward(self, *, features: Tensor) -> Any:  # type: ignore[override]
        return super().forward(features / 2, lengths=[3, 5])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = fastrnn.GRUCell(3, 3, backend="reference")
        self.encoder = nn.Sequential(fastrnn.GRU(3, 3, num_layers=2, backend="numba"))
        self.halved = Halved(3, 4, batch_first=True)
        self.spare = fastrnn.RNN(3, 4)
        self.theirs = nn.LSTM(3, 4)

    def forward(self, x: Tensor, times: int = 1) -> Tensor:
        h = None
        for row in x:
            h = self.cell(row, h)
        for _ in range(times):
            x = self.encoder(x)[0]
        return self.halved(features=x.transpose(0, 1))[0]


def test_layers_in_the_order_of_calls() -> None:
    model, x = Model(), torch.randn(5, 2, 3)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    found = fastrnn.explain(model, x, times=2)
    assert isinstance(found, ModelExplanation)
    assert [name for name, _ in found.calls] == ["cell", "encoder.0", "halved"]
    assert [one.layers for _, one in found.calls] == [["reference"], ["numba"] * 2, ["numba"]]
    assert found.calls[-1][1].reasons["aten"] == "cannot: torch's kernels take no lengths"
    assert (found.not_called, found.others) == (["spare"], {"theirs": "torch.nn.LSTM"})
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


def test_it_is_for_people() -> None:
    said = str(fastrnn.explain(Model(), torch.randn(5, 2, 3))).splitlines()
    assert said[:3] == ["cell:", "  asked for: reference", "  serves the call: reference"]
    assert said[-2] == "spare: not called"
    assert said[-1] == "theirs: a torch.nn.LSTM; fastrnn.accelerate(model) makes torch.nn's layers fastrnn's"


def test_the_models_errors_are_raised_and_nothing_stays() -> None:
    model = Model()
    with pytest.raises(RuntimeError, match="inconsistent input_size"):
        fastrnn.explain(model, torch.randn(5, 2, 7))
    assert not {"_run", "_step"} & {name for module in model.modules() for name in vars(module)}


def test_what_surrounds_the_call_counts() -> None:
    model, x = nn.Sequential(fastrnn.LSTM(3, 4, dtype=torch.bfloat16)), torch.randn(5, 2, 3, dtype=torch.bfloat16)
    with fastrnn.use_backend("reference"):
        ((_, explanation),) = fastrnn.explain(model, x).calls
    assert (explanation.asked, explanation.layers) == ("reference", ["reference"])


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_cells(kind: str, batched: bool) -> None:
    cell = getattr(fastrnn, f"{kind}Cell")(3, 4)
    x = torch.randn(2, 3) if batched else torch.randn(3)
    assert fastrnn.explain(cell, x) == fastrnn.explain(cell, x, cell(x))
    assert fastrnn.explain(cell, x).asked == "auto"
    cell.backend = "reference"
    assert fastrnn.explain(cell, x).layers == ["reference"]


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("count", [0, 1, 3, None])
def test_a_cells_wrong_states_are_refused_as_in_a_call(kind: str, count: int | None) -> None:
    cell, x = getattr(fastrnn, f"{kind}Cell")(3, 4), torch.randn(2, 3)
    given = 5 if count is None else (torch.zeros(2, 4),) * count
    with pytest.raises((AttributeError, RuntimeError, TypeError)) as called:
        cell(x, given)
    with pytest.raises(called.type) as explained:
        fastrnn.explain(cell, x, given)
    assert str(explained.value) == str(called.value)
