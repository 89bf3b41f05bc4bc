"""Each cell's step and its derivative over one vector of units: the equations of `fastrnn.cells` with loads and stores.

A step reads its gates' pre-activations side by side at `gx` and `gh`, biases added, the state before it at `h` and `c`,
and stores the new `c` in place; it writes what backward needs at `saved`, blocks `block` apart, if that is there at
all, and returns h. A derivative returns the gradient that reaches the h before directly, writes the pre-activations'
gradients at `dgates` in the layout of `saved`, and replaces the gradient of c after the step, at `dc`, by that of c
before it. `before` and `after` are the addresses of the state before and after the step: c where there is one, else h.
Only the first `some` units exist. Scratch memory (gx, gh, h, c, dc) is padded to whole vectors, the rest is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastrnn.backends.numba.kernels.activations import forced, sigmoid, tanh
from fastrnn.backends.numba.kernels.simd import (
    at_least,
    fma,
    lanes,
    load,
    load_some,
    store,
    store_some,
    where_le,
)


@forced
def _pre(like: Any, gx: int, gh: int, gate: int) -> Any:
    at = gate * lanes(like)
    return load(like, gx, at) + load(like, gh, at)


@forced
def lstm_step(like: Any, gx: int, gh: int, h: int, c: int, saved: int, block: int, some: int) -> Any:
    i = sigmoid(_pre(like, gx, gh, 0))
    f = sigmoid(_pre(like, gx, gh, 1))
    g = tanh(_pre(like, gx, gh, 2))
    o = sigmoid(_pre(like, gx, gh, 3))
    new = fma(f, load(like, c, 0), i * g)
    store(c, 0, new)
    if saved != 0:
        store_some(saved, 0, i, some)
        store_some(saved, block, f, some)
        store_some(saved, 2 * block, g, some)
        store_some(saved, 3 * block, o, some)
    return o * tanh(new)


@forced
def lstm_derivative(
    like: Any, dh: Any, saved: int, block: int, before: int, after: int, dc: int, dgates: int, some: int
) -> Any:
    i = load_some(like, saved, 0, some)
    f = load_some(like, saved, block, some)
    g = load_some(like, saved, 2 * block, some)
    o = load_some(like, saved, 3 * block, some)
    tanh_c = tanh(load_some(like, after, 0, some))
    d = fma(dh * o, 1.0 - tanh_c * tanh_c, load(like, dc, 0))
    store(dc, 0, d * f)
    store_some(dgates, 0, d * g * i * (1.0 - i), some)
    store_some(dgates, block, d * load_some(like, before, 0, some) * f * (1.0 - f), some)
    store_some(dgates, 2 * block, d * i * (1.0 - g * g), some)
    store_some(dgates, 3 * block, dh * tanh_c * o * (1.0 - o), some)
    return like


@forced
def gru_step(like: Any, gx: int, gh: int, h: int, c: int, saved: int, block: int, some: int) -> Any:
    r = sigmoid(_pre(like, gx, gh, 0))
    z = sigmoid(_pre(like, gx, gh, 1))
    a = load(like, gh, 2 * lanes(like))
    n = tanh(fma(r, a, load(like, gx, 2 * lanes(like))))
    if saved != 0:
        store_some(saved, 0, n, some)
        store_some(saved, block, r, some)
        store_some(saved, 2 * block, z, some)
        store_some(saved, 3 * block, a, some)
    return fma(z, load(like, h, 0), (1.0 - z) * n)


@forced
def gru_derivative(
    like: Any, dh: Any, saved: int, block: int, before: int, after: int, dc: int, dgates: int, some: int
) -> Any:
    n = load_some(like, saved, 0, some)
    r = load_some(like, saved, block, some)
    z = load_some(like, saved, 2 * block, some)
    a = load_some(like, saved, 3 * block, some)
    dn = dh * (1.0 - z) * (1.0 - n * n)
    store_some(dgates, 0, dn, some)
    store_some(dgates, block, dn * a * r * (1.0 - r), some)
    store_some(dgates, 2 * block, dh * (load_some(like, before, 0, some) - n) * z * (1.0 - z), some)
    store_some(dgates, 3 * block, dn * r, some)
    return dh * z


@forced
def rnn_tanh_step(like: Any, gx: int, gh: int, h: int, c: int, saved: int, block: int, some: int) -> Any:
    return tanh(_pre(like, gx, gh, 0))


@forced
def rnn_tanh_derivative(
    like: Any, dh: Any, saved: int, block: int, before: int, after: int, dc: int, dgates: int, some: int
) -> Any:
    h = load_some(like, after, 0, some)
    store_some(dgates, 0, dh * (1.0 - h * h), some)
    return like


@forced
def rnn_relu_step(like: Any, gx: int, gh: int, h: int, c: int, saved: int, block: int, some: int) -> Any:
    return at_least(_pre(like, gx, gh, 0), 0.0)


@forced
def rnn_relu_derivative(
    like: Any, dh: Any, saved: int, block: int, before: int, after: int, dc: int, dgates: int, some: int
) -> Any:
    store_some(dgates, 0, where_le(load_some(like, after, 0, some), 0.0, 0.0, dh), some)
    return like


@dataclass(frozen=True)
class CellKernel:
    """A cell's two functions and what the kernels around them must know at compile time."""

    step: Any
    derivative: Any
    saves: int = 0
    has_c: bool = False
    projects: bool = False


CELL_KERNELS = {
    "lstm": CellKernel(lstm_step, lstm_derivative, saves=4, has_c=True, projects=True),
    "gru": CellKernel(gru_step, gru_derivative, saves=4),
    "rnn_tanh": CellKernel(rnn_tanh_step, rnn_tanh_derivative),
    "rnn_relu": CellKernel(rnn_relu_step, rnn_relu_derivative),
}
