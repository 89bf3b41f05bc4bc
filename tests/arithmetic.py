"""How precise torch's own arithmetic is: what results in a dtype are measured by, as `tests/tolerances.py` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn.backends import products, reference
from fastrnn.backends.layer import Gradients, Layer, Residuals
from fastrnn.cells import CELLS
from tests.devices import without_cudnn
from tests.random_layers import cast, compute, parameters
from tests.tolerances import DRAWS, ROUNDS_PRODUCTS, relative_error

Cotangents = tuple[list[Tensor], list[Tensor]]


def yardsticks(layer: Layer, dtype: torch.dtype, grads: Cotangents, backend: str) -> list[dict[str, Tensor]]:
    """Torch's results in `dtype`, then, where `backend` rounds to 16 bits, the reference with random roundings."""
    results = [torchs_own(layer, dtype, grads)]
    if backend in ROUNDS_PRODUCTS and dtype.itemsize == 2:
        results += [randomly_rounded(layer, torch.finfo(dtype).eps, grads) for _ in range(DRAWS)]
    return results


def torchs_own(layer: Layer, dtype: torch.dtype, grads: Cotangents) -> dict[str, Tensor]:
    """What torch.nn's kernels give in `dtype`; the step-by-step reference where they cannot serve the layer.

    On a GPU those are torch's loops over steps: cuDNN's backward wants a forward in training and weights side by side.
    """
    beyond = layer.reverse or layer.heads > 1 or layer.x.shape[0] == 0 or layer.cell_name not in CELLS
    if beyond or any(mask is not None for mask in (layer.lengths, layer.resets, layer.recurrent_mask)):
        return compute(layer, dtype, "reference", grads)
    layer = cast(layer, dtype)
    run = getattr(fastrnn.functional, layer.cell_name.split("_")[0])
    options = {"nonlinearity": layer.cell_name.split("_")[1]} if "_" in layer.cell_name else {}
    biases = [layer.biases[2 * k : 2 * k + 2] for k in range(layer.directions)]
    weights = [[layer.w_ih[k], layer.w_hh[k][0], *biases[k], *layer.extras[k : k + 1]] for k in range(layer.directions)]
    hx = tuple(layer.states0) if len(layer.states0) > 1 else layer.states0[0]
    named = parameters(layer)
    with without_cudnn():
        output, finals = run(layer.x, hx, weights, bidirectional=layer.directions == 2, backend="aten", **options)
        outputs = [output, *(finals if isinstance(finals, tuple) else (finals,))]
        gradients = torch.autograd.grad(outputs, [*named.values()], [d.to(dtype) for group in grads for d in group])
    names = ["output", *(f"final[{i}]" for i in range(len(outputs) - 1)), *(f"d {name}" for name in named)]
    return dict(zip(names, [*outputs, *gradients], strict=True))


def randomly_rounded(layer: Layer, epsilon: float, grads: Cotangents) -> dict[str, Tensor]:
    """The float64 reference, but for random relative errors of up to half of `epsilon` where a kernel rounds.

    Biases are added in the storage dtype; for the rest see `random_roundings`.
    """
    layer = replace(layer, biases=[random_errors(bias, epsilon) for bias in layer.biases])
    with random_roundings(epsilon):
        return compute(layer, torch.float64, "reference", grads)


def random_errors(tensor: Tensor, epsilon: float) -> Tensor:
    """The tensor with relative errors of up to half of `epsilon`."""
    return tensor * (1 + epsilon * (torch.rand_like(tensor) - 0.5))


@contextmanager
def random_roundings(epsilon: float) -> Iterator[None]:
    """Gives the reference random errors where a kernel rounds.

    gx and the outputs are kept in the storage dtype; h and the gates' gradients are multiplied in it.
    """

    def rounded(tensor: Tensor) -> Tensor:
        return random_errors(tensor, epsilon)

    def rounding(owner: Any, name: str, change: Callable[[Any], Any]) -> None:
        exact = getattr(owner, name)
        patch.setattr(owner, name, lambda *arguments, **options: change(exact(*arguments, **options)))

    with pytest.MonkeyPatch.context() as patch:
        rounding(products, "input_product", rounded)
        rounding(products, "hidden_product", rounded)
        rounding(products, "hidden_product_backward", rounded)
        rounding(reference, "forward", lambda result: result._replace(states=[*map(rounded, result.states)]))
        rounding(reference, "_backward_direction", lambda flow: (*map(rounded, flow[:2]), *flow[2:]))
        yield


def truth_of(layer: Layer, grads: Cotangents, exact: dict[str, Tensor], result: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `result` is judged by: `exact`, but of a relu the gradients at the outputs that it has itself.

    An output that rounding took across the kink has another derivative, and rightly so.
    """
    if layer.cell_name != "rnn_relu":
        return exact
    kept = Residuals([result["output"].detach().double()])
    with torch.no_grad():
        found = reference.backward(layer, kept, Gradients(list(grads[0]), list(grads[1])))
    lists = {name: getattr(found, name) for name in ("w_ih", "w_hh", "biases", "states0")}
    named = {f"d {name}[{i}]": tensor for name, tensors in lists.items() for i, tensor in enumerate(tensors)}
    return {**exact, "d x": found.x[0], **named}


def judged(
    layer: Layer, grads: Cotangents, results: dict[str, Tensor], others: Sequence[dict[str, Tensor]]
) -> dict[str, tuple[float, float]]:
    """By name, the relative error of a result and the largest that any of `others` has."""
    exact = compute(layer, torch.float64, "reference", grads)
    truth, *truths = (truth_of(layer, grads, exact, each) for each in (results, *others))
    return {
        name: (
            relative_error(result, truth[name]),
            max(relative_error(other[name], own[name]) for other, own in zip(others, truths, strict=True)),
        )
        for name, result in results.items()
    }
