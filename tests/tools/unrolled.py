"""What `fastrnn.probe` is compared with: an unrolled loop in plain torch, and a model with layers by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from tests.torch_parity import HIDDEN, INPUT

SIGMOID, TANH = (0.4, 0.55), 0.2
"""Thresholds between which some of the gates lie, but not all."""


class Unrolled:
    """A stack of layers as a loop over torch's elementwise operations, every state of which keeps its gradient."""

    def __init__(
        self,
        kind: str,
        module: nn.Module,
        x: Tensor,
        hx: Any,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> None:
        self.kind, self.steps, self.batch = kind, *x.shape[:2]
        self.live = torch.arange(self.steps)[:, None] < (torch.full((self.batch,), 99) if lengths is None else lengths)
        self.resets = torch.zeros_like(self.live) if resets is None else resets
        self.cut = [self.resets & self.live, torch.cat((self.resets & self.live, self.resets[:1] & False))[1:]]
        self.gates: dict[str, list[list[Tensor]]] = defaultdict(list)
        """by name, for each layer and direction, for each step (B, H); states are here, too"""
        self.handed_on: list[list[list[Tensor]]] = []
        """for each layer and direction, for each step, the states that enter it"""
        self.arriving: list[list[list[Tensor]]] = []
        """as above, the states after it, as its results"""
        before = hx if isinstance(hx, tuple) else (hx,)
        for names in zip(*[iter(module._all_weights)] * (1 + module.bidirectional), strict=True):
            first = len(self.handed_on)
            outputs = [
                self._direction(direction, [getattr(module, n) for n in own], x, [s[first + direction] for s in before])
                for direction, own in enumerate(names)
            ]
            x = torch.cat(outputs, -1)
        self.output = x

    def _direction(self, direction: int, weights: list[Tensor], x: Tensor, states: list[Tensor]) -> Tensor:
        rows: dict[str, list[Any]] = defaultdict(lambda: [None] * self.steps)
        order = reversed(range(self.steps)) if direction else range(self.steps)
        for t in order:
            entering = [self._kept(torch.where(self.cut[direction][t][:, None], 0, state)) for state in states]
            named = self._step(x[t], entering, *weights)
            after = [self._kept(named[name].view_as(named[name])) for name in ("h", "c")[: len(states)]]
            row = self.live[t][:, None]
            states = [torch.where(row, new, old) for new, old in zip(after, states, strict=True)]
            for name, value in (named | {"entering": entering, "after": after}).items():
                rows[name][t] = value
        self.handed_on.append(rows.pop("entering"))
        self.arriving.append(rows.pop("after"))
        for name, values in rows.items():
            self.gates[name].append(values)
        hs = [after[0] for after in self.arriving[-1]]
        return torch.where(self.live[..., None], torch.stack(hs), 0)

    def _step(self, x: Tensor, before: list[Tensor], w_ih: Tensor, w_hh: Tensor, *others: Tensor) -> dict[str, Tensor]:
        b_ih, b_hh, *w_hr = others
        gx, gh = x @ w_ih.T + b_ih, before[0] @ w_hh.T + b_hh
        if self.kind.startswith("RNN"):
            return {"h": self._kept((gx + gh).relu() if self.kind == "RNN_RELU" else (gx + gh).tanh())}
        if self.kind == "GRU":
            (x_r, x_z, x_n), (h_r, h_z, h_n) = gx.chunk(3, -1), gh.chunk(3, -1)
            r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
            n = (x_n + r * h_n).tanh()
            return {"r": r, "z": z, "n": n, "h": self._kept((1 - z) * n + z * before[0])}
        i, f, g, o = (gx + gh).chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = self._kept(f * before[1] + i * g)
        h = o * c.tanh()
        return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": self._kept(h @ w_hr[0].T if w_hr else h)}

    @staticmethod
    def _kept(state: Tensor) -> Tensor:
        # Even where nothing below it requires a gradient, as in h0: by adding what does.
        state = state + torch.zeros((), dtype=state.dtype, requires_grad=True)
        state.retain_grad()
        return state

    def mean(self, name: str, function: Callable[[Tensor], Tensor]) -> Tensor:
        """(layers·directions, T): the mean of a function of what bears that name, over live sequences and units."""
        return torch.tensor(
            [
                [function(value.detach()[self.live[t]]).double().mean() for t, value in enumerate(row)]
                for row in self.gates[name]
            ]
        )

    def gradient_norms(self, name: str) -> Tensor:
        rows = [[gradient_of(value)[self.live[t]].norm() for t, value in enumerate(row)] for row in self.gates[name]]
        return torch.where(self.live.any(1), torch.tensor(rows), torch.nan)

    def gradient_gains(self) -> Tensor:
        rows = []
        for row, (entering, after) in enumerate(zip(self.handed_on, self.arriving, strict=True)):
            direction = row % (len(self.handed_on) // 2)
            uncut = self.live & ~self.cut[direction]
            norms = [
                [torch.stack([gradient_of(s)[uncut[t]].norm() for s in states[t]]).norm() for t in range(self.steps)]
                for states in (entering, after)
            ]
            rows.append([a / b if uncut[t].any() else torch.nan for t, (a, b) in enumerate(zip(*norms, strict=True))])
        return torch.tensor(rows)


def gradient_of(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def at_every_step(output: Tensor) -> Tensor:
    return (output * torch.linspace(1, 2, output.numel(), dtype=output.dtype).view_as(output)).sum()


def at_the_last_step(output: Tensor) -> Tensor:
    return output[-1].square().sum()


def assert_figures(figures: Any, expected: Unrolled) -> None:
    kind = expected.kind
    gates = {"GRU": ["r", "z", "n"], "LSTM": ["i", "f", "g", "o"]}.get(kind, ["h"])
    assert list(figures.gate_means) == list(figures.saturation) == gates
    saturated = {
        "sigmoid": lambda v: (v < SIGMOID[0]) | (v > SIGMOID[1]),
        "tanh": lambda v: (v > TANH) | (v < -TANH),
        "relu": lambda v: v <= 0,
    }
    for gate in gates:
        activation = "relu" if kind == "RNN_RELU" else "tanh" if gate in "gnh" else "sigmoid"
        assert_near(figures.gate_means[gate], expected.mean(gate, lambda v: v))
        shares = figures.saturation[gate]
        assert_near(shares, expected.mean(gate, saturated[activation]))
        assert ((shares > 0) & (shares < 1)).any(), "the thresholds must tell some from others"
    for name, norms in figures.state_norms.items():
        assert_near(norms, expected.mean(name, lambda v: v.norm(dim=-1)))
    assert list(figures.gradient_norms) == list(figures.state_norms) == ["h", "c"][: 1 + (kind == "LSTM")]
    for name, norms in figures.gradient_norms.items():
        assert_near(norms, expected.gradient_norms(name))
    assert_near(figures.gradient_gains, expected.gradient_gains())
    assert figures.sequences.tolist() == expected.live.sum(1).tolist()


def assert_near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected.double(), rtol=1e-9, atol=1e-12, equal_nan=True)


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"lstm": fastrnn.LSTM(INPUT, HIDDEN, 2, dropout=0.5, dtype=dtype)})
        self.decoder = fastrnn.GRU(HIDDEN, HIDDEN, dtype=dtype)
        self.unused = fastrnn.RNNCell(INPUT, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder["lstm"](x)[0])[0]
