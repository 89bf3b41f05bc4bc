"""The CUDA kernels with cells that are not built in, on the CPU: as many gates, blocks and saved values as theirs."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastrnn.backends import layer
from fastrnn.backends.addresses import address
from fastrnn.cells import Cell
from fastrnn.cells.emit import cuda
from tests.backends import cuda_host
from tests.cells.zoo import ZOO
from tests.tolerances import relative_error

CELLS = ("cifg", "mgu")
"""Three gates and saved values, an odd number of them to a 16-bit pair; and two gates of which one adds its shares."""
STEPS, BATCH, UNITS = 4, 9, 40
DTYPES = {"bfloat16": torch.bfloat16, "tf32": torch.float32}
ALLOWED = {"bfloat16": 2e-2, "tf32": 3e-3}
"""Some roundings of 2⁻⁹ and 2⁻¹¹ in each step."""

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(bool(cuda_host.missing()), reason=str(cuda_host.missing())),
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """An extension of these cells alone."""
    folder = tmp_path_factory.mktemp("cells")
    sources, built = folder / "csrc", folder / "_C.so"
    shutil.copytree(cuda_host.SOURCES, sources)
    programs = [program for name in CELLS if (program := ZOO[name].program) is not None]
    (sources / "cells.h").write_text(cuda.names(programs, "A test's."))
    (sources / "cells.cuh").write_text(cuda.classes(programs, "A test's."))
    setup: Any = cuda_host.setup_module()
    setup.CELLS_FILE = sources / "cells.h"
    setup.compile_and_link_for_host(setup.find_sources(sources), setup.find_cxx(), folder / "objects", built)
    spec = importlib.util.spec_from_file_location("fastrnn_cells._C", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recurrence(NamedTuple):
    """What a recurrence starts from, and what arrives backward, in float64 of numbers that its dtype holds."""

    cell: Cell
    gx: Tensor
    """(T, B, Gx, H)"""
    w_hh: Tensor
    """(Gu·H, H)"""
    b_hh: Tensor
    """(Gu, H)"""
    states0: list[Tensor]
    """(B, H) each"""
    dys: Tensor
    """(T, B, H)"""
    d_last: list[Tensor]
    """(B, H) each"""


def recurrence(cell: Cell, dtype: torch.dtype) -> Recurrence:
    torch.manual_seed(0)

    def numbers(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype).double()

    u_gates = len(cell.u_gates)
    return Recurrence(
        cell,
        numbers(STEPS, BATCH, len(cell.x_gates), UNITS),
        numbers(u_gates * UNITS, UNITS, scale=UNITS**-0.5),
        numbers(u_gates, UNITS) * (not cell.adds_shares),
        [numbers(BATCH, UNITS) for _ in cell.states],
        numbers(STEPS, BATCH, UNITS),
        [numbers(BATCH, UNITS) for _ in cell.states],
    )


def by_autograd(one: Recurrence) -> dict[str, Tensor]:
    """All that kernels write, by the names of csrc/arguments.h, and `pre`, the pre-activations."""
    cell, count = one.cell, len(one.cell.u_gates)
    gx, states0 = one.gx.clone().requires_grad_(), [state.clone().requires_grad_() for state in one.states0]
    zero = torch.zeros(STEPS, BATCH, count, UNITS, dtype=torch.float64, requires_grad=True)
    states, steps = tuple(states0), []
    for t in range(STEPS):
        gh = (states[0] @ one.w_hh.T).unflatten(-1, (count, UNITS)) + one.b_hh + zero[t]
        pre = preactivations(cell, gx[t], gh)
        states, saved = cell.step(gx[t], gh, states)
        steps.append((states[0], states[-1], torch.stack(saved, -2), pre))
    history = dict(zip(("ys", "cs", "gates", "pre"), map(torch.stack, zip(*steps, strict=True)), strict=True))
    dgx, dgh, *d_states0 = torch.autograd.grad([history["ys"], *states], (gx, zero, *states0), [one.dys, *one.d_last])
    gradients = {"dgx": dgx, "dgh": dgh, **dict(zip(("dh0", "dc0"), d_states0, strict=False))}
    return {name: tensor.detach() for name, tensor in (history | gradients).items()}


def preactivations(cell: Cell, gx: Tensor, gh: Tensor) -> Tensor:
    """(..., W, H) in the order of the blocks, from (..., Gx, H) and (..., Gu, H)."""
    shares = {f"x_{gate}": share for gate, share in zip(cell.x_gates, gx.unbind(-2), strict=True)}
    shares |= {f"u_{gate}": share for gate, share in zip(cell.u_gates, gh.unbind(-2), strict=True)}
    shares |= {f"a_{gate}": shares[f"x_{gate}"] + shares[f"u_{gate}"] for gate in set(cell.x_gates) & set(cell.u_gates)}
    return torch.stack([shares[block] for block in cell.blocks], -2)


def launch(
    kernel: Callable[..., None],
    one: Recurrence,
    element: str,
    pairs: dict[str, Tensor | None],
    tensors: dict[str, Tensor | None],
    **flags: bool,
) -> None:
    """Calls a kernel. `pairs` are what each direction has one of."""
    values: dict[str, Any] = {"T": STEPS, "B": BATCH, "H": UNITS, "heads": 1, "directions": 1, "reverse": False}
    values |= {"lengths": 0, "resets": 0, **{name: address(tensor) for name, tensor in tensors.items()}}
    values |= {name: (address(tensor), 0) for name, tensor in pairs.items()}
    kernel(one.cell.name, element, values | flags, 0, 0)


@pytest.mark.parametrize("way", ["block", "grid"])
@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_kernels_serve_other_cells(
    name: str, element: str, way: str, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRNN_CUDA_WAY", way)
    cell, dtype = ZOO[name], DTYPES[element]
    one = recurrence(cell, dtype)
    want, has_c = by_autograd(one), len(cell.states) == 2

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.full((*shape, UNITS), torch.nan, dtype=dtype)

    def of_c(tensor: Tensor) -> Tensor | None:
        return tensor if has_c else None

    w_hh, b_hh = one.w_hh.to(dtype), None if cell.adds_shares else one.b_hh.to(dtype)
    h0, c0 = one.states0[0].to(dtype), of_c(one.states0[-1].to(dtype))
    ys, cs = empty(STEPS, BATCH), of_c(empty(STEPS, BATCH, dtype=torch.float32))
    gates = empty(STEPS, BATCH, len(cell.saved), dtype=layer.gate_dtype(dtype))
    read: dict[str, Tensor | None] = {"h0": h0, "c0": c0, "gx": one.gx.to(dtype)}
    written = {"ys": ys, "cs": cs, "gates": gates, "h_last": empty(BATCH), "c_last": of_c(empty(BATCH))}
    launch(kernels.forward, one, element, {"w_hh": w_hh, "b_hh": b_hh}, read | written)
    results = {"ys": ys, "cs": cs, "gates": gates}

    dys, dh_last, dc_last = one.dys.to(dtype), one.d_last[0].to(dtype), of_c(one.d_last[-1].to(dtype))
    read = {"h0": h0, "c0": c0, "ys": ys, "cs": cs, "dys": dys, "dcs": None, "dh_last": dh_last, "dc_last": dc_last}
    for recomputed in (False, True):
        read["gates"] = want["pre"].to(dtype) if recomputed else gates
        dgates, dh0, dc0 = empty(STEPS, BATCH, len(cell.blocks)), empty(BATCH), of_c(empty(BATCH))
        written = {"dgates": dgates, "dh0": dh0, "dc0": dc0}
        launch(kernels.backward, one, element, {"w_hh": w_hh}, read | written, are_preactivations=recomputed)
        results |= {"dgx": cell.of_gates(dgates, cell.dgx), "dgh": cell.of_gates(dgates, cell.dgh)}
        results |= {"dh0": dh0, "dc0": dc0}
        for what, result in results.items():
            assert result is None or relative_error(result, want[what]) < ALLOWED[element], (what, recomputed)
