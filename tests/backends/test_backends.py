"""Every operator backend against the float64 reference: values and all gradients, in every dtype it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastrnn import backends, ops
from fastrnn.backends import gate_gradients
from fastrnn.backends.layer import Gradients, Layer, Residuals
from fastrnn.cells import CELLS
from tests.arithmetic import yardsticks
from tests.devices import why_not
from tests.random_layers import (
    AWKWARD,
    DROPPED,
    PROJECTED,
    Shape,
    cast,
    compute,
    cotangents,
    parameters,
    random_layer,
    rounded,
)
from tests.tolerances import FLOOR, assert_accurate, relative_error

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=str(reason)))
    for name in backends.OPERATOR_BACKENDS
    for reason in [why_not(name)]
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CASES = [(cell, shape) for cell in CELLS for shape in AWKWARD] + [("lstm", shape) for shape in PROJECTED]
CASES += [(cell, shape) for cell in ("lstm", "gru") for shape in DROPPED]
CASES += [("lstm", replace(DROPPED[1], heads=1, projection=3))]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def skip_unless_supported(layer: Layer, *names: str) -> None:
    for name in names:
        reason = backends.module(name).supports(layer)
        if reason is not None:
            pytest.skip(f"{name}: {reason}")


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's, of its own kernel
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cell", "shape"), CASES, ids=str)
def test_values_and_gradients(cell: str, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    layer = rounded(random_layer(cell, shape), dtype)
    skip_unless_supported(layer, backend)
    grads = tuple([d.to(dtype).double() for d in group] for group in cotangents(layer))
    truth = compute(layer, torch.float64, "reference", grads)
    others = yardsticks(layer, dtype, grads, backend)
    for name, result in compute(layer, dtype, backend, grads).items():
        assert_accurate(name, result, truth[name], *(other[name] for other in others))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("shape", [AWKWARD[5], AWKWARD[14], DROPPED[1]], ids=str)
def test_recomputed_gates_give_the_same_gradients(cell: str, shape: Shape, backend: str) -> None:
    layer = random_layer(cell, shape)
    skip_unless_supported(layer, backend)
    grads = cotangents(layer)
    kept = compute(layer, torch.float64, backend, grads)
    for name, result in compute(layer, torch.float64, backend, grads, recompute=True).items():
        assert relative_error(result, kept[name]) <= 100 * FLOOR[torch.float64], name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru"])
def test_more_rows_than_are_summed_at_a_time(cell: str, backend: str) -> None:
    """One more than 128."""
    layer = random_layer(cell, Shape(steps=3, batch=43))
    grads = cotangents(layer)
    truth = compute(layer, torch.float64, "reference", grads)
    for name, result in compute(layer, torch.float64, backend, grads).items():
        assert relative_error(result, truth[name]) <= 100 * FLOOR[torch.float64], name


@pytest.mark.parametrize("rows", [1, 127, 129, 300, 128 * 129 + 1])
def test_sums_of_rows_are_not_rounded_on_the_way(rows: int) -> None:
    values = torch.randn(rows, 3).bfloat16()
    torch.testing.assert_close(gate_gradients._sum_rows(values, torch.float32), values.double().sum(0).float())


@pytest.mark.parametrize("forward_by", BACKENDS)
@pytest.mark.parametrize("backward_by", BACKENDS)
@pytest.mark.parametrize(
    ("cell", "shape"), [*((cell, AWKWARD[14]) for cell in CELLS), ("lstm", PROJECTED[12])], ids=str
)
def test_one_backend_takes_what_another_saved(cell: str, shape: Shape, forward_by: str, backward_by: str) -> None:
    """The saved tensors have one layout, and the gradient of the cells' other states is honoured."""
    layer = random_layer(cell, shape)
    skip_unless_supported(layer, forward_by, backward_by)
    expected = backends.module("reference").forward(layer, history=True, gates=True)
    result = backends.module(forward_by).forward(layer, history=True, gates=True)
    d_states = [torch.randn_like(state) for state in expected.states]
    gradients = Gradients(d_states, [torch.randn_like(final) for final in expected.finals])
    kept, truth = Residuals(result.states, result.saved), Residuals(expected.states, expected.saved)
    got = backends.module(backward_by).backward(layer, kept, gradients)
    want = backends.module("reference").backward(layer, truth, gradients)
    for name, group, wanted in zip(got._fields, got, want, strict=True):
        for tensor, other in zip(group, wanted, strict=True):
            assert relative_error(tensor, other) <= 100 * FLOOR[torch.float64], name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_missing_gradients_are_zero(cell: str, backend: str) -> None:
    layer = random_layer(cell, Shape(directions=2))
    run = backends.module(backend)
    result = run.forward(layer, history=True, gates=True)
    kept = Residuals(result.states, result.saved)
    zeros = Gradients([torch.zeros_like(s) for s in result.states], [torch.zeros_like(f) for f in result.finals])
    only = torch.randn_like(result.finals[0])
    zeros.finals[0] = only
    nothing = Gradients([None] * len(result.states), [only, *[None] * (len(result.finals) - 1)])
    for group, wanted in zip(run.backward(layer, kept, nothing), run.backward(layer, kept, zeros), strict=True):
        for tensor, other in zip(group, wanted, strict=True):
            assert torch.equal(tensor, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_only_needed_gradients_are_computed(cell: str, backend: str) -> None:
    layer = random_layer(cell, Shape(directions=2))
    run = backends.module(backend)
    result = run.forward(layer, history=True, gates=True)
    gradients = Gradients([torch.ones_like(s) for s in result.states], [None] * len(result.finals), False, False)
    found = run.backward(layer, Residuals(result.states, result.saved), gradients)._asdict()
    assert len(found.pop("states0")) == len(layer.states0)
    assert not any(found.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_stay_in_their_sequence(cell: str, bad: float, backend: str) -> None:
    layer = random_layer(cell, Shape(batch=7, hidden=17, directions=2))
    clean = ops.forward(layer, history=False, gates=False, backend=backend)
    layer.x[2, 3] = bad
    dirty = ops.forward(layer, history=False, gates=False, backend=backend)
    others = [0, 1, 2, 4, 5, 6]
    for before, after in zip(clean.states + clean.finals, dirty.states + dirty.finals, strict=True):
        assert torch.equal(before[:, others], after[:, others])
    if bad != bad:
        assert dirty.finals[0][:, 3].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_aliases_and_no_argument_changes(cell: str, backend: str) -> None:
    layer = random_layer(cell, Shape(steps=1, batch=1, directions=2))
    copies = {name: tensor.clone() for name, tensor in parameters(layer).items()}
    run = backends.module(backend)
    result = run.forward(layer, history=True, gates=True)
    kept = [tensor.clone() for tensor in result.states + result.saved]
    gradients = Gradients([torch.ones_like(s) for s in result.states], [torch.ones_like(f) for f in result.finals])
    grads = run.backward(layer, Residuals(result.states, result.saved), gradients)
    tensors = [*(t for group in (*result, *grads) for t in group), *parameters(layer).values()]
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    assert len(set(storages)) == len(storages)
    for name, tensor in parameters(layer).items():
        assert torch.equal(tensor, copies[name]), name
    assert all(torch.equal(a, b) for a, b in zip(kept, result.states + result.saved, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_results_repeat_bitwise(cell: str, backend: str) -> None:
    layer = random_layer(cell, Shape(steps=11, batch=13, hidden=40, directions=2))
    grads = cotangents(layer)
    first, second = (compute(layer, torch.float32, backend, grads) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_product_beyond_float16_is_kept_finite(backend: str) -> None:
    """The GRU's h W_n + b_hn, which is saved: in backward it meets a zero, the derivative of a saturated tanh."""
    layer = random_layer("gru", Shape())
    layer.states0[0].fill_(1)
    layer.w_hh[0][:, 2 * layer.hidden_size :] = 1e4
    layer.biases[1][2 * layer.hidden_size :] = 6e4
    skip_unless_supported(cast(layer, torch.float16), backend)
    for name, result in compute(layer, torch.float16, backend, cotangents(layer)).items():
        assert result.isfinite().all(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_gates_are_kept_so_that_gradients_in_bfloat16_lose_little(backend: str) -> None:
    """Beside gates that are computed again: those add 2 % to the error, and kept in bfloat16 they would double it."""
    layer = rounded(random_layer("lstm", Shape(steps=15, batch=8, hidden=24)), torch.bfloat16)
    skip_unless_supported(cast(layer, torch.bfloat16), backend)
    grads = tuple([d.bfloat16().double() for d in group] for group in cotangents(layer))
    truth = compute(layer, torch.float64, "reference", grads)
    kept, again = (
        relative_error(compute(layer, torch.bfloat16, backend, grads, recompute)["d w_hh[0]"], truth["d w_hh[0]"])
        for recompute in (False, True)
    )
    assert kept <= 1.2 * again


@pytest.mark.parametrize("cell", CELLS)
def test_heads_are_a_block_diagonal_recurrence(cell: str) -> None:
    layer = random_layer(cell, Shape(hidden=6, heads=3, directions=2, resets=True, lengths=True))
    gates, width = len(CELLS[cell].u_gates), 2
    dense = []
    for w_hh in layer.w_hh:
        full = torch.zeros(gates, 6, 6, dtype=torch.float64)
        for head, rows in enumerate(w_hh.unflatten(1, (gates, width))):
            block = slice(head * width, (head + 1) * width)
            full[:, block, block] = rows
        dense.append(full.flatten(0, 1)[None])
    grads = cotangents(layer)
    by_head = compute(layer, torch.float64, "reference", grads)
    by_block = compute(replace(layer, w_hh=dense), torch.float64, "reference", grads)
    for name in by_head.keys() - {"d w_hh[0]", "d w_hh[1]"}:
        torch.testing.assert_close(by_head[name], by_block[name])
    for k in range(2):
        full = by_block[f"d w_hh[{k}]"][0].unflatten(0, (gates, 6))
        for head, rows in enumerate(by_head[f"d w_hh[{k}]"].unflatten(1, (gates, width))):
            block = slice(head * width, (head + 1) * width)
            torch.testing.assert_close(rows, full[:, block, block])
