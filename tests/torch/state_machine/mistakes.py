"""Calls that both must refuse, with errors of one type, or fastrnn alone, of what torch.nn does not take or check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.torch.state_machine.twins import Twins

Mistake = Callable[[Any, Tensor, Any], Any]


def each(hx: Any, change: Callable[[Tensor], Any]) -> Any:
    """`change` of a state, or of both."""
    return tuple(map(change, hx)) if isinstance(hx, tuple) else change(hx)


def other(tensor: Tensor) -> Tensor:
    """Of the other dtype."""
    return tensor.to(torch.float32 if tensor.dtype == torch.float64 else torch.float64)


BOTH: dict[str, Mistake] = {
    "no input": lambda module, x, hx: module(),
    "scalar input": lambda module, x, hx: module(x.sum()),
    "4-D input": lambda module, x, hx: module(x[None, None]),
    "input size": lambda module, x, hx: module(F.pad(x, (0, 1)), hx),
    "input dtype": lambda module, x, hx: module(other(x)),
    "integers": lambda module, x, hx: module(x.long()),
    "hx size": lambda module, x, hx: module(x, each(hx, lambda h: F.pad(h, (0, 1)))),
    "hx batch": lambda module, x, hx: module(x, each(hx, lambda h: torch.cat((h, h), -2))),
    "4-D hx": lambda module, x, hx: module(x, each(hx, lambda h: h[None, None])),
    "keyword": lambda module, x, hx: module(x, state=hx),
}
OURS: dict[str, tuple[type[Exception], Mistake]] = {
    "on meta": (RuntimeError, lambda module, x, hx: module(x.to("meta"))),
    "hx dtype": (RuntimeError, lambda module, x, hx: module(x, each(hx, other))),
}
LAYERS: dict[str, tuple[type[Exception], Mistake]] = {
    "input is None": (TypeError, lambda module, x, hx: module(None)),
    "hx is a number": (TypeError, lambda module, x, hx: module(x, 0)),
    "lengths too large": (ValueError, lambda module, x, hx: module(x, lengths=[99] * batch(module, x))),
    "lengths too small": (ValueError, lambda module, x, hx: module(x, lengths=torch.tensor([-1] * batch(module, x)))),
    "floating lengths": (ValueError, lambda module, x, hx: module(x, lengths=torch.ones(batch(module, x)))),
    "too many lengths": (ValueError, lambda module, x, hx: module(x, lengths=[1] * (batch(module, x) + 1))),
    "floating resets": (ValueError, lambda module, x, hx: module(x, resets=torch.zeros(x.shape[:2]))),
    "resets of other steps": (ValueError, lambda module, x, hx: module(x, resets=torch.zeros(9, 9) > 0)),
}
REPEATS = 3
"""Right calls of the same sizes before the mistake, so that they are remembered."""
NAMES = (*BOTH, *OURS, *LAYERS)


def batch(module: Any, x: Tensor) -> int:
    """Of an input of layers."""
    return x.shape[0 if module.batch_first else 1]


def check(twins: Twins, name: str, grad: bool) -> None:
    """Makes the mistake; `grad` with gradients."""
    cell = twins.kind.cell
    shape = (3,) if cell else (4, 3)
    x = torch.ones(*shape, twins.theirs.input_size, dtype=twins.dtype)
    count = 4 if not cell and twins.theirs.batch_first else 3
    states = tuple(torch.ones(twins.state_shape(count, width), dtype=twins.dtype) for width in twins.widths)
    hx = states if len(states) > 1 else states[0]
    with torch.set_grad_enabled(grad):
        for _ in range(REPEATS):
            twins.ours(x, hx)
        if name in BOTH:
            expected, got = (
                _error(lambda module=module: BOTH[name](module, x, hx)) for module in reversed(twins.modules)
            )
            assert type(got) is type(expected), f"{got!r} in place of {expected!r}"
            assert got is not None
        elif name in OURS or not cell:
            kind, mistake = OURS[name] if name in OURS else LAYERS[name]
            got = _error(lambda: mistake(twins.ours, x, hx))
            kinds = (kind, RuntimeError) if twins.ours.backend == "aten" else kind  # which takes neither
            assert isinstance(got, kinds), f"{got!r} in place of a {kind.__name__}"


def _error(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None
