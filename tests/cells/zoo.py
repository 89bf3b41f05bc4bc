"""Cells that are not built in, each written once: what the compiler and its emitters are tried with."""

from __future__ import annotations

from typing import Any

import fastrnn
from fastrnn.cells import (
    Cell,
    Step,
    exp,
    log_sigmoid,
    maximum,
    mix,
    relu,
    sigmoid,
    softplus,
    sqrt,
    stop_gradient,
    tanh,
    where,
)
from fastrnn.cells.known import known


@fastrnn.cell(gates="ifgo")
def peephole(x: Any, u: Any, h: Any, c: Any, *, p_i: Any, p_f: Any, p_o: Any) -> Any:
    """An LSTM whose gates see its memory: Gers and Schmidhuber (2000)."""
    i, f = sigmoid(x.i + u.i + p_i * c), sigmoid(x.f + u.f + p_f * c)
    c = f * c + i * tanh(x.g + u.g)
    return sigmoid(x.o + u.o + p_o * c) * tanh(c), c


@fastrnn.cell
def cifg(x: Any, u: Any, h: Any, c: Any) -> Any:
    """An LSTM whose input gate is what its forget gate leaves: Greff et al. (2017)."""
    f, g, o = sigmoid(x.f + u.f), tanh(x.g + u.g), sigmoid(x.o + u.o)
    c = mix(f, c, g)
    return o * tanh(c), c


@fastrnn.cell
def mgu(x: Any, u: Any, h: Any) -> Any:
    """The minimal gated unit, Zhou et al. (2016), its gate after the product as in torch's GRU."""
    f = sigmoid(x.f + u.f)
    n = tanh(x.n + f * u.n)
    return mix(f, n, h)


@fastrnn.cell
def ligru(x: Any, u: Any, h: Any) -> Any:
    """The light GRU: Ravanelli et al. (2018)."""
    z, n = sigmoid(x.z + u.z), relu(x.n + u.n)
    return mix(z, h, n)


@fastrnn.cell
def star(x: Any, u: Any, h: Any) -> Any:
    """The stackable recurrent cell, Turkoglu et al. (2020): one gate has no share of the state."""
    k, z = sigmoid(x.k + u.k), tanh(x.z)
    return tanh((1 - k) * h + k * z)


@fastrnn.cell
def indrnn(x: Any, h: Any, *, w: Any) -> Any:
    """Independently recurrent: Li et al. (2018). No product with the state."""
    return relu(x.a + w * h)


@fastrnn.cell
def mingru(x: Any, h: Any) -> Any:
    """The minimal GRU, Feng et al. (2024): gates do not see the state."""
    return mix(sigmoid(x.z), x.n, h)


@fastrnn.cell
def slstm(x: Any, u: Any, h: Any, c: Any, n: Any, m: Any) -> Any:
    """xLSTM's scalar memory, Beck et al. (2024). The output is the same for every m, so that m needs no gradient."""
    log_f, log_i = log_sigmoid(x.f + u.f) + m, x.i + u.i
    m = stop_gradient(maximum(log_f, log_i))
    i, f = exp(log_i - m), exp(log_f - m)
    c, n = f * c + i * tanh(x.z + u.z), f * n + i
    return sigmoid(x.o + u.o) * (c / n), c, n, m


@fastrnn.cell(gates="ifgo")
def zoneout(x: Any, u: Any, h: Any, c: Any, *, keep_h: Step, keep_c: Step) -> Any:
    """An LSTM that keeps some of its states for a step: Krueger et al. (2017)."""
    i, f, g, o = sigmoid(x.i + u.i), sigmoid(x.f + u.f), tanh(x.g + u.g), sigmoid(x.o + u.o)
    new = f * c + i * g
    return mix(keep_h, h, o * tanh(new)), mix(keep_c, c, new)


@fastrnn.cell
def scaled_residual(x: Any, u: Any, h: Any, *, scale: Any, floor: Any) -> Any:
    """Known to nobody: the gradient of `scale` is known to the recurrence alone, and every other function occurs."""
    a = tanh(x.a + u.a)
    b = where(h > floor, softplus(x.b - u.b), sqrt(1 + abs(u.b)))
    return h + scale * a / (1 + b)


ZOO: dict[str, Cell] = {
    cell.name: known(cell)
    for cell in (peephole, cifg, mgu, ligru, star, indrnn, mingru, slstm, zoneout, scaled_residual)
}  # fmt: skip
