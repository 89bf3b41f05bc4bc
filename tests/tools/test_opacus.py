"""Opacus finds each sample's gradient: that of a loop over single samples, whatever reaches the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from tests.torch_parity import assert_close

opacus = pytest.importorskip("opacus")
fastrnn_opacus = pytest.importorskip("fastrnn.opacus")
pytestmark = pytest.mark.filterwarnings("ignore")  # what Opacus imports and hooks

TIME, BATCH, INPUT, HIDDEN = 6, 4, 3, 5


class Model(nn.Module):
    """All that a layer takes; output and final states all reach the loss."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(INPUT, INPUT)
        self.rnn = getattr(fastrnn, name)(INPUT, HIDDEN, num_layers=2, bidirectional=True, **options)

    def forward(self, x: Tensor, h: Tensor, lengths: Tensor, resets: Tensor) -> Tensor:
        """A number for each sample; x has batch first."""
        x, resets = (t if self.rnn.batch_first else t.transpose(0, 1) for t in (self.embed(x), resets))
        hx = (h[..., : self.rnn.proj_size or HIDDEN].transpose(0, 1), h.transpose(0, 1))
        y, hn = self.rnn(x, hx if self.rnn.cell == "LSTM" else hx[1], lengths=lengths, resets=resets)
        finals = hn if self.rnn.cell == "LSTM" else (hn,)
        by_sample = y.flatten(2) if self.rnn.batch_first else y.transpose(0, 1)
        return by_sample.square().sum((1, 2)) + sum((i + 2) * s.square().sum((0, 2)) for i, s in enumerate(finals))


def arguments(batch: int) -> tuple[Tensor, ...]:
    lengths = torch.tensor([TIME, 0, 2, 1])[:batch]
    return torch.randn(batch, TIME, INPUT), torch.randn(batch, 4, HIDDEN), lengths, torch.rand(batch, TIME) < 0.3


def prepared(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A model and what Opacus makes of its copy."""
    model = Model(name, **options)
    model.rnn.cell = name
    assert any(
        f"fastrnn.{name}: Opacus's hooks see neither" in str(error)
        for error in opacus.validators.ModuleValidator.validate(model)
    )
    fixed = opacus.validators.ModuleValidator.fix(model)
    assert type(fixed.rnn) is fastrnn_opacus.PerSample
    assert opacus.validators.ModuleValidator.validate(fixed) == []
    fixed.rnn.cell, fixed.rnn.batch_first, fixed.rnn.proj_size = name, model.rnn.batch_first, model.rnn.proj_size
    return model, fixed


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {"batch_first": True, "proj_size": 2}),
        ("GRU", {}),
        ("GRU", {"num_heads": 5}),
        ("RNN", {"batch_first": True, "bias": False}),
    ],
    ids=["LSTM", "GRU", "GRU of heads", "RNN"],
)
def test_they_are_those_of_a_loop_over_samples(name: str, options: dict[str, Any], reduction: str) -> None:
    model, fixed = prepared(name, **options)
    wrapped = opacus.GradSampleModule(fixed, loss_reduction=reduction)
    given = arguments(BATCH)
    expected = []
    for index in range(BATCH):
        loss = model(*(argument[index : index + 1] for argument in given)).sum()
        expected.append(torch.autograd.grad(loss, list(model.parameters())))
    h = given[1].requires_grad_()
    losses, own = wrapped(*given), model(*given)
    assert_close([losses], [own], 1e-6)
    d_h = torch.autograd.grad(getattr(own, reduction)(), h)
    getattr(losses, reduction)().backward()
    assert_close([h.grad], d_h, 1e-5)
    assert_close(
        [p.grad_sample for p in wrapped.parameters()], [torch.stack(g) for g in zip(*expected, strict=True)], 2e-5
    )


def test_time_first_for_opacus_too_and_no_samples() -> None:
    """A batch that Poisson sampling left empty trains on."""

    for batch in (BATCH, 0):
        layer = opacus.GradSampleModule(
            fastrnn_opacus.PerSample(fastrnn.GRU(INPUT, HIDDEN)), batch_first=False, loss_reduction="sum"
        )
        layer(torch.randn(TIME, batch, INPUT))[0].sum().backward()
        for parameter in layer.parameters():
            assert parameter.grad_sample.shape == (batch, *parameter.shape)
            assert_close([parameter.grad_sample.sum(0)], [parameter.grad], 1e-5)


def test_a_private_step() -> None:
    _, fixed = prepared("LSTM", batch_first=True)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*arguments(BATCH)), batch_size=2)
    optimizer = torch.optim.SGD(fixed.parameters(), lr=0.1)
    model, optimizer, data = opacus.PrivacyEngine().make_private(
        module=fixed, optimizer=optimizer, data_loader=data, noise_multiplier=1.0, max_grad_norm=1.0
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for batch in data:
        optimizer.zero_grad()
        model(*batch).mean().backward()
        optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_evaluation_and_dropout_are_the_layers() -> None:

    lstm, x = fastrnn.LSTM(INPUT, HIDDEN, num_layers=2, dropout=0.5), torch.randn(TIME, BATCH, INPUT)
    own = fastrnn_opacus.PerSample(lstm)
    for training in (True, False):
        results = []
        for module in (lstm.train(training), own.train(training)):
            torch.manual_seed(0)
            output, (hn, cn) = module(x)
            results.append([output, hn, cn])
        assert_close(*results, 1e-6)


def test_recurrent_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"recurrent_dropout must be 0, got 0\.5"):
        fastrnn_opacus.PerSample(fastrnn.GRU(INPUT, HIDDEN, recurrent_dropout=0.5))


def test_what_opacus_cannot_hook_is_refused_by_name() -> None:
    for module, message in (
        (
            fastrnn.GRU(INPUT, HIDDEN),
            r"fastrnn\.GRU: Opacus's hooks see neither .* opacus\.validators\.Mod.*\.fix\(model\)",
        ),
        (fastrnn.GRUCell(INPUT, HIDDEN), r"fastrnn\.GRUCell: Opacus's hooks do not see a cell's state: use a layer"),
    ):
        with pytest.raises(TypeError, match=message):
            opacus.GradSampleModule(module)
    (error,) = opacus.validators.ModuleValidator.validate(fastrnn.LSTMCell(INPUT, HIDDEN))
    assert "do not see a cell's state: use a layer" in str(error)
    with pytest.raises(TypeError, match="must be a fastrnn RNN, GRU or LSTM, got Linear"):
        fastrnn_opacus.PerSample(nn.Linear(2, 3))  # type: ignore[arg-type]
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(TIME, 2, INPUT), torch.tensor([TIME, 2]))
    with pytest.raises(TypeError, match=r"padded, with lengths="):
        fastrnn_opacus.PerSample(fastrnn.GRU(INPUT, HIDDEN))(packed)
