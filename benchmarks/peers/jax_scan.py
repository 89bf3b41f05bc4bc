"""JAX as a peer for cells of one's own: `jax.lax.scan` over the step, compiled by XLA, trained by `jax.vjp`.

Where a step is h' = a h + b, with a and b of the input alone, also `jax.lax.associative_scan` over all pairs of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid

from benchmarks.peers.task import Array, CellTask

Shares = dict[str, Any]
"""A product's rows by gate, (B, H) each."""


def peephole_lstm(x: Shares, u: Shares, h: Any, c: Any, *, p_i: Any, p_f: Any, p_o: Any) -> Any:
    i, f = sigmoid(x["i"] + u["i"] + p_i * c), sigmoid(x["f"] + u["f"] + p_f * c)
    c = f * c + i * jnp.tanh(x["g"] + u["g"])
    return sigmoid(x["o"] + u["o"] + p_o * c) * jnp.tanh(c), c


def mgu(x: Shares, u: Shares, h: Any) -> Any:
    f = sigmoid(x["f"] + u["f"])
    n = jnp.tanh(x["n"] + f * u["n"])
    return ((1 - f) * h + f * n,)


def layer_norm_lstm(x: Shares, u: Shares, h: Any, c: Any, **own: Any) -> Any:
    xs, us = _normalised([x[gate] for gate in "ifgo"]), _normalised([u[gate] for gate in "ifgo"])
    i, f, g, o = (
        a * own[f"gain_x{gate}"] + own[f"bias_{gate}"] + b * own[f"gain_u{gate}"]
        for gate, a, b in zip("ifgo", xs, us, strict=True)
    )
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    (normal,) = _normalised([c])
    return sigmoid(o) * jnp.tanh(normal * own["gain_c"] + own["bias_c"]), c


def _normalised(parts: list[Any]) -> list[Any]:
    whole = jnp.concatenate(parts, -1)
    middle = whole - whole.mean(-1, keepdims=True)
    return jnp.split(middle / jnp.sqrt((middle * middle).mean(-1, keepdims=True) + 1e-5), len(parts), -1)


def indrnn(x: Shares, u: Shares, h: Any, *, w: Any) -> Any:
    return (jax.nn.relu(x["a"] + w * h),)


def mingru(x: Shares, u: Shares, h: Any) -> Any:
    z = sigmoid(x["z"])
    return ((1 - z) * h + z * x["n"],)


CELLS: dict[str, Callable[..., Any]] = {
    step.__name__: step for step in (peephole_lstm, mgu, layer_norm_lstm, indrnn, mingru)
}


def mingru_pairs(x: Shares) -> tuple[Any, Any]:
    z = sigmoid(x["z"])
    return 1 - z, z * x["n"]


LINEAR: dict[str, Callable[[Shares], tuple[Any, Any]]] = {"mingru": mingru_pairs}
"""a and b of all steps, from the shares of all."""


class JaxScan:
    """A layer in one direction with its gradients, compiled when the task is given."""

    def layer(self, task: CellTask) -> Callable[[dict[str, Any], Any], Any]:
        """A function of the weights and x (T, B, I) that gives the output (T, B, H)."""
        return _stepwise(task)

    def __init__(self, task: CellTask) -> None:
        if hasattr(os, "sched_setaffinity"):  # XLA has as many threads as processors, and there is no other way
            processors = sorted(os.sched_getaffinity(0))[: task.threads]
            os.sched_setaffinity(0, processors)
        self.weights = {name: jnp.asarray(value) for name, value in task.weights.items()}
        self.x, self.dy = jnp.asarray(task.x), jnp.asarray(task.dy)
        self.compiled = jax.jit(_training(self.layer(task))).lower(self.weights, self.x, self.dy).compile()
        self.found: Any = None

    def run(self) -> None:
        """Performs the task once."""
        self.found = jax.block_until_ready(self.compiled(self.weights, self.x, self.dy))

    def poison(self) -> None:
        """There is nothing to find before a run."""
        self.found = None

    def results(self) -> list[Array]:
        """The output (T, B, H), then the gradients of x and of the weights in the task's order."""
        output, d_x, d_weights = self.found
        return [np.asarray(value) for value in (output, d_x, *(d_weights[name] for name in self.weights))]


class JaxAssociativeScan(JaxScan):
    """The same of a cell in `LINEAR`, in logarithmically many passes over all steps."""

    def layer(self, task: CellTask) -> Callable[[dict[str, Any], Any], Any]:
        """As `JaxScan.layer`."""
        return _associative(task)


def _shares(rows: Any, gates: tuple[str, ...]) -> Shares:
    parts = jnp.split(rows, len(gates), axis=-1) if gates else []
    return dict(zip(gates, parts, strict=True))


def _stepwise(task: CellTask) -> Callable[[dict[str, Any], Any], Any]:
    step, parameters = CELLS[task.cell], [name for name in task.weights if name not in task.products]

    def layer(weights: dict[str, Any], x: Any) -> Any:
        own = {name: weights[name] for name in parameters}

        def one(states: Any, gx: Any) -> Any:
            gh = states[0] @ weights["weight_hh"].T + weights["bias_hh"] if task.u_gates else None
            after = step(_shares(gx, task.x_gates), _shares(gh, task.u_gates), *states, **own)
            return after, after[0]

        zeros = jnp.zeros((x.shape[1], task.hidden_size), x.dtype)
        gx = x @ weights["weight_ih"].T + weights["bias_ih"]
        return jax.lax.scan(one, (zeros,) * task.states, gx)[1]

    return layer


def _associative(task: CellTask) -> Callable[[dict[str, Any], Any], Any]:
    pairs = LINEAR[task.cell]

    def after(first: tuple[Any, Any], second: tuple[Any, Any]) -> tuple[Any, Any]:
        return second[0] * first[0], second[0] * first[1] + second[1]

    def layer(weights: dict[str, Any], x: Any) -> Any:
        gx = x @ weights["weight_ih"].T + weights["bias_ih"]
        return jax.lax.associative_scan(after, pairs(_shares(gx, task.x_gates)))[1]

    return layer


def _training(layer: Callable[[dict[str, Any], Any], Any]) -> Callable[..., Any]:
    def training(weights: dict[str, Any], x: Any, dy: Any) -> Any:
        output, pull = jax.vjp(layer, weights, x)
        d_weights, d_x = pull(dy)
        return output, d_x, d_weights

    return training
