"""Stage `smoke`: whether every kind of kernel computes what the float64 reference does, forward and all gradients.

The reference and what its results are measured by (`tests/tolerances.py`) run on the CPU. Of a result that is wrong the
record tells where: by step, by sequence, by unit, so that the cause can be looked for without a second run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import precision
from benchmarks.gpu.build import HOST_FOLDER
from fastrnn import extension
from fastrnn.backends import CannotServe, module
from fastrnn.backends.layer import Layer
from fastrnn.cells import CELLS, Cell, library
from fastrnn.cells.known import known
from tests.arithmetic import judged, randomly_rounded, yardsticks
from tests.backends import cuda_host
from tests.random_layers import Shape, any_layer, compute, cotangents, random_layer, rounded
from tests.tolerances import DRAWS, FACTOR, FLOOR, TF32_EPSILON

PRECISIONS = ("bfloat16", "float16", "tf32", "float32")
UNITS = {
    "triton": (17, 64, 128, 200),
    "cuda block": (40, 128),
    "cuda cluster": (40, 128, 200, 512, 768),
    "cuda grid": (40, 300, 1024),
}
"""By backend and way, of the layers that are tried: each width of a kernel, and sizes that fill none."""
VARIANTS = {
    "plain": Shape(steps=9, batch=11, inputs=24),
    "masked": Shape(steps=11, batch=19, inputs=24, lengths=True, resets=True),
    "reverse": Shape(steps=6, batch=3, inputs=5, reverse=True),
    "both": Shape(steps=7, batch=9, inputs=24, directions=2, lengths=True),
}
LARGE_UNITS = 512
"""From here on the reference on the CPU takes seconds with every variant: the plain and the masked one are tried."""
FEATURES = {
    "heads": Shape(steps=5, batch=9, inputs=24, heads=2, directions=2),
    "dropped": Shape(steps=5, batch=9, inputs=24, resets=True, dropped=True),
}
"""More variants, of layers of as many units as `FEATURED` says: each takes kernels of its own, which take seconds."""
FEATURED = {"triton": 128, "cuda block": 128, "cuda cluster": 200, "cuda grid": 300}
OTHERS = ("peephole_lstm", "slstm", "zoneout_lstm", "layer_norm_lstm", "indrnn", "mingru")
"""Cells that are not built in: with parameters, with four states, with inputs of steps, with means over units, and two
without a product."""
OTHER_UNITS = {"triton": (20, 128, 200), "cuda block": (40,), "cuda cluster": (40, 512), "cuda grid": (40, 300)}
"""Of 20 units a cell with means is computed in one launch, of 200 by programs of several warps."""
OTHER_VARIANTS = {
    "masked": VARIANTS["masked"],
    "both": VARIANTS["both"],
    "long": Shape(steps=130, batch=3, inputs=5, directions=2, lengths=True, resets=True),
}
"""The long one of cells without a product: of fewer steps Triton makes no scan."""
SMALL = Shape(steps=3, batch=3, inputs=4)
MAY_BE_REFUSED = ("it takes heads of up to", "it has no recurrent dropout")
"""How the reasons begin for which a kernel need not serve a layer that is tried. Any other is a fault."""
WORST = 5
"""Places of a wrong result that are named."""


@dataclass(frozen=True)
class Smoke:
    """One layer, computed by one kind of kernel."""

    backend: str
    """as in `UNITS`"""
    cell: str
    precision: str
    shape: Shape
    recompute: bool = False

    def __str__(self) -> str:
        parts = [self.backend, self.cell, self.precision, str(self.shape), *(["recompute"] if self.recompute else [])]
        return " ".join(parts)


def smokes(backend: str, cells: Sequence[str], precisions: Sequence[str], small: bool) -> Iterator[Smoke]:
    """What a job tries, of each cell the smallest layers first; with `small` only those."""
    for cell in cells:
        for units in (UNITS if cell in CELLS else OTHER_UNITS)[backend][: 1 if small else None]:
            for kind in precisions:
                for name, variant in {"small": SMALL}.items() if small else variants(backend, cell, units):
                    shape = replace(variant, hidden=units)
                    yield Smoke(backend, cell, kind, shape, recompute=name == "both" and bool(cell_of(cell).saved))


def variants(backend: str, cell: str, units: int) -> list[tuple[str, Shape]]:
    """By name, what is tried of a layer of that many units."""
    if cell not in CELLS:
        return [row for row in OTHER_VARIANTS.items() if row[0] != "long" or not cell_of(cell).u_gates]
    found = [row for row in VARIANTS.items() if units < LARGE_UNITS or row[0] in ("plain", "masked")]
    return [*found, *FEATURES.items()] if units == FEATURED[backend] else found


def cell_of(name: str) -> Cell:
    """A built-in cell, or the library's."""
    return CELLS[name] if name in CELLS else known(getattr(library, name))


def cases(
    backend: str, cells: Sequence[str], precisions: Sequence[str], device: str = "cuda", small: bool = False
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`. The way of the backend `cuda` is FASTRNN_CUDA_WAY's; on the CPU its kernels are those of `build`."""
    torch.set_num_threads(1)
    if device == "cpu" and backend != "triton" and HOST_FOLDER.exists():
        for_host = cuda_host.load(HOST_FOLDER)
        extension._load = lambda: for_host  # type: ignore[assignment]
    for smoke in smokes(backend, cells, precisions, small):
        yield str(smoke), partial(run, smoke, device)


def run(smoke: Smoke, device: str) -> dict[str, Any]:
    """Whether it holds, the largest share of the allowed error, and of each wrong result where it is wrong."""
    torch.manual_seed(len(str(smoke)))
    name = smoke.backend.split()[0]
    dtype = torch.float32 if smoke.precision in ("tf32", "float32") else getattr(torch, smoke.precision)
    made = random_layer(smoke.cell, smoke.shape) if smoke.cell in CELLS else any_layer(cell_of(smoke.cell), smoke.shape)
    layer = rounded(made, dtype)
    d_states, d_finals = grads = tuple([d.to(dtype).double() for d in group] for group in cotangents(layer))
    with precision.products("tf32" if smoke.precision == "tf32" else "float32"):
        there = on(device, layer)
        reason = module(name).supports(cast_shallow(there, dtype))
        if reason is not None:
            return refused(reason)
        try:
            on_device = [d.to(device) for d in d_states], [d.to(device) for d in d_finals]
            got = compute(there, dtype, name, on_device, smoke.recompute)
        except CannotServe as error:
            return refused(str(error))
        got = {key: value.detach().cpu() for key, value in got.items()}
    if smoke.precision == "tf32":
        others = [randomly_rounded(layer, TF32_EPSILON[name], grads) for _ in range(DRAWS)]
    else:
        with precision.products("float32"):
            others = yardsticks(layer, dtype, grads, name)
    exact = compute(layer, torch.float64, "reference", grads)
    worst, wrong = 0.0, {}
    for key, (error, measure) in judged(layer, grads, got, others).items():
        allowed = FACTOR * measure + FLOOR[dtype]
        share = error / allowed
        worst = max(worst, share) if share == share else float("inf")
        if not share <= 1:
            told = pattern(got[key].double(), exact[key].detach())
            wrong[key] = {"error": error, "allowed": allowed, **told}
    return {"ok": not wrong, "share": round(worst, 3) if worst < float("inf") else "inf", "wrong": wrong}


def refused(reason: str) -> dict[str, Any]:
    """What is told of a layer that is not served: a kernel that is not there must not pass for one that is right."""
    return {"ok": None, "reason": reason} if reason.startswith(MAY_BE_REFUSED) else {"failed": f"not served: {reason}"}


def on(device: str, layer: Layer) -> Layer:
    """The layer's tensors on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().to(device)
        return [move(part) for part in value] if isinstance(value, list) else value

    return Layer(**{field.name: move(getattr(layer, field.name)) for field in fields(layer)})


def cast_shallow(layer: Layer, dtype: torch.dtype) -> Layer:
    """What `supports` is asked about: it looks at x alone."""
    return replace(layer, x=layer.x.to(dtype))


def pattern(got: Tensor, truth: Tensor) -> dict[str, Any]:
    """Where a result differs from the truth: how many elements, the first, and the worst places of each dimension."""
    if got.shape != truth.shape:
        return {"shape": list(got.shape), "expected": list(truth.shape)}
    difference = (got - truth).abs().nan_to_num(nan=float("inf"))
    bad = difference > 0.05 * truth.abs().max().clamp_min(1e-30)
    told: dict[str, Any] = {"shape": list(got.shape), "bad": int(bad.sum()), "nan": int(got.isnan().sum())}
    if bad.any():
        first = [int(index) for index in bad.nonzero()[0]]
        told |= {"first": first, "got": float(got[tuple(first)]), "truth": float(truth[tuple(first)])}
    for dimension in range(got.dim()):
        others = [other for other in range(got.dim()) if other != dimension]
        counts = bad.sum(others) if others else bad.long()
        places = [int(place) for place in counts.argsort(descending=True, stable=True)[:WORST] if counts[place]]
        told[f"dim {dimension}"] = {"places": places, "counts": [int(counts[place]) for place in places]}
    return told
