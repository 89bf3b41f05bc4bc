"""The `cuda` backend's kernels on the CPU, where a cluster's threads are fibers: the same source, proved without a GPU.

Schedules are random: blocks and warps rest at random, stores to other blocks arrive late and in any order. A result
that depends on the seed of the schedule lacks a wait; every seed must give the same bits. Where there is a GPU, and the
extension for it, the same tests run there too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

import fastrnn
from fastrnn import backends, extension, ops
from fastrnn.backends import cuda as backend
from fastrnn.backends.layer import Gradients, Residuals
from fastrnn.cells import CELLS
from tests.backends.cuda_results import assert_as_reference, assert_as_tf32, assert_schedules_agree, in_dtype
from tests.random_layers import AWKWARD, Shape, parameters, random_layer, rounded
from tests.tolerances import FLOOR, relative_error

pytest_plugins = ["tests.backends.cuda_fixtures"]
pytestmark = pytest.mark.usefixtures("poisoned_memory", "kernels")

DTYPES = (torch.bfloat16, torch.float16)
HEADS = (
    Shape(batch=9, hidden=38, heads=2, directions=2, lengths=True, resets=True),
    Shape(steps=3, hidden=6, heads=3, bias=False),
)
CLUSTERS = (Shape(steps=4, batch=11, hidden=200), Shape(steps=3, batch=3, hidden=256, directions=2, resets=True))
"""Units spread over the blocks of a cluster."""
TF32 = (AWKWARD[0], AWKWARD[5], AWKWARD[6], AWKWARD[14], HEADS[0], *CLUSTERS)
"""Of clusters, which small batches take; of one block, see `BLOCKS`."""
BLOCKS = [
    pytest.param(cell, shape, dtype, id=f"{cell}-{shape}-{dtype}")
    for cell in CELLS
    for shape in (*AWKWARD, *HEADS, Shape(steps=4, batch=11, hidden=120))
    for dtype in (torch.bfloat16, torch.float32)
    if shape.hidden <= 64 or dtype != torch.float32 or cell.startswith("rnn")
]
"""What a block on its own can hold."""
WIDE = [
    ("lstm", 512, torch.bfloat16),
    ("lstm", 768, torch.bfloat16),
    ("lstm", 384, torch.float32),
    ("lstm", 512, torch.float32),
    ("gru", 512, torch.float32),
    ("rnn_tanh", 768, torch.float32),
]
"""Clusters of 16 blocks, which but for the first have no registers for all weights."""
CASES = [
    pytest.param(cell, shape, recompute, id=f"{cell}-{shape}-{'preactivations' if recompute else 'gates'}")
    for cell in CELLS
    for shape in (*AWKWARD, *HEADS, *CLUSTERS)
    for recompute in (False, True)
    if CELLS[cell].saved or not recompute
]
SEEDED = [
    *(
        (cell, Shape(steps=9, batch=11, hidden=40, directions=2, lengths=True, resets=True), d, "block")
        for d in DTYPES
        for cell in CELLS
    ),
    *((cell, Shape(steps=4, batch=2, hidden=256), torch.bfloat16, "cluster") for cell in CELLS),
    *(
        (cell, Shape(steps=4, batch=2, hidden=hidden), torch.float32, way)
        for cell in ("lstm", "gru")
        for hidden, way in ((40, "block"), (128, "cluster"))
    ),
]
"""A block on its own, and a cluster of eight or, for TF32, four blocks: threads by the thousand, and slow."""


@pytest.fixture(params=["", "block"], ids=["any way", "block"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel that is planned, and by a block on its own."""
    monkeypatch.setenv("FASTRNN_CUDA_WAY", request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cell", "shape", "recompute"), CASES)
def test_values_and_gradients(cell: str, shape: Shape, recompute: bool, dtype: torch.dtype) -> None:
    assert_as_reference(random_layer(cell, shape), dtype, recompute)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", TF32, ids=str)
def test_tf32(cell: str, shape: Shape) -> None:
    layer = random_layer(cell, shape)
    assert_as_tf32(layer)
    if CELLS[cell].saved:
        assert_as_tf32(layer, recompute=True)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(("cell", "shape", "dtype"), BLOCKS)
def test_a_block_on_its_own(cell: str, shape: Shape, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a large batch takes it."""
    monkeypatch.setenv("FASTRNN_CUDA_WAY", "block")
    layer = random_layer(cell, shape)
    for recompute in (False, True) if CELLS[cell].saved and shape == AWKWARD[14] else (False,):
        if dtype == torch.float32:
            assert_as_tf32(layer, recompute)
        else:
            assert_as_reference(layer, dtype, recompute)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(("cell", "hidden", "dtype"), WIDE, ids=str)
def test_wide_heads(cell: str, hidden: int, dtype: torch.dtype) -> None:
    shape = Shape(steps=2, batch=9, hidden=hidden, resets=True)
    if dtype == torch.float32:
        assert_as_tf32(random_layer(cell, shape))
    else:
        assert_as_reference(random_layer(cell, shape), dtype)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(("cell", "shape", "dtype", "way"), SEEDED, ids=str)
def test_every_schedule_gives_the_same_bits(
    cell: str,
    shape: Shape,
    dtype: torch.dtype,
    way: str,
    seeded: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTRNN_CUDA_WAY", way)
    assert_schedules_agree(random_layer(cell, shape), dtype, seeded)


@pytest.mark.parametrize("cell", CELLS)
def test_it_takes_what_the_reference_saved(cell: str) -> None:
    """The layout is the shared one, and the gradient of the LSTM's c is honoured."""
    layer = rounded(random_layer(cell, AWKWARD[14]), torch.bfloat16)
    half = in_dtype(layer, torch.bfloat16)
    kept = backends.module("reference").forward(half, history=True, gates=True)
    d_states = [torch.randn_like(state) for state in kept.states]
    gradients = Gradients(d_states, [torch.randn_like(final) for final in kept.finals])
    residuals = Residuals(kept.states, kept.saved)
    got = backend.backward(half, residuals, gradients)
    want = backends.module("reference").backward(half, residuals, gradients)
    for name, group, wanted in zip(got._fields, got, want, strict=True):
        for tensor, other in zip(group, wanted, strict=True):
            assert relative_error(tensor, other) <= 5 * FLOOR[torch.bfloat16], name


@pytest.mark.parametrize("cell", CELLS)
def test_missing_gradients_are_zero(cell: str) -> None:
    layer = in_dtype(random_layer(cell, Shape(directions=2)), torch.float16)
    result = backend.forward(layer, history=True, gates=True)
    kept = Residuals(result.states, result.saved)
    zeros = Gradients([torch.zeros_like(s) for s in result.states], [torch.zeros_like(f) for f in result.finals])
    zeros.finals[0] = torch.randn_like(result.finals[0])
    nothing = Gradients([None] * len(result.states), [zeros.finals[0], *[None] * (len(result.finals) - 1)])
    for group, wanted in zip(backend.backward(layer, kept, nothing), backend.backward(layer, kept, zeros), strict=True):
        assert all(torch.equal(tensor, other) for tensor, other in zip(group, wanted, strict=True))
    silence = Gradients([None] * len(result.states), [None] * len(result.finals))
    assert all((tensor == 0).all() for group in backend.backward(layer, kept, silence) for tensor in group)


@pytest.mark.usefixtures("tf32", "either_way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_inference_gives_the_same_bits(cell: str, dtype: torch.dtype) -> None:
    layer = in_dtype(random_layer(cell, AWKWARD[14]), dtype)
    kept, lean = (backend.forward(layer, history=keep, gates=keep) for keep in (True, False))
    assert (len(lean.states), len(lean.saved)) == (1, 0)
    for tensor, other in zip([kept.states[0], *kept.finals], [lean.states[0], *lean.finals], strict=True):
        assert torch.equal(tensor, other)


@pytest.mark.usefixtures("tf32", "either_way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_stay_in_their_sequence(cell: str, bad: float, dtype: torch.dtype) -> None:
    layer = in_dtype(random_layer(cell, Shape(batch=7, hidden=17, directions=2)), dtype)
    clean = ops.forward(layer, history=False, gates=False, backend="cuda")
    layer.x[2, 3] = bad
    dirty = ops.forward(layer, history=False, gates=False, backend="cuda")
    others = [0, 1, 2, 4, 5, 6]
    for before, after in zip(clean.states + clean.finals, dirty.states + dirty.finals, strict=True):
        assert torch.equal(before[:, others], after[:, others])
    if bad != bad:
        assert dirty.finals[0][:, 3].isnan().all()


@pytest.mark.parametrize("cell", CELLS)
def test_no_argument_changes_and_nothing_beside_the_results_is_written(cell: str) -> None:
    layer = in_dtype(random_layer(cell, AWKWARD[14]), torch.float16)
    copies = {name: tensor.clone() for name, tensor in parameters(layer).items()}
    result = backend.forward(layer, history=True, gates=True)
    kept = [tensor.clone() for tensor in result.states + result.saved]
    gradients = Gradients([torch.ones_like(s) for s in result.states], [torch.ones_like(f) for f in result.finals])
    backend.backward(layer, Residuals(result.states, result.saved), gradients)
    for name, tensor in parameters(layer).items():
        assert torch.equal(tensor.nan_to_num(7), copies[name].nan_to_num(7)), name
    assert all(torch.equal(a, b) for a, b in zip(kept, result.states + result.saved, strict=True))


@pytest.mark.usefixtures("on_the_host")
def test_a_module_asks_for_it_by_name() -> None:
    gru = fastrnn.GRU(3, 4, backend="cuda", dtype=torch.bfloat16)
    x = torch.randn(5, 2, 3, dtype=torch.bfloat16)
    assert fastrnn.explain(gru, x).layers == ["cuda"]
    gru(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in gru.parameters())


@pytest.mark.usefixtures("on_the_host")
def test_auto_leaves_it_alone_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numba", "triton"):
        monkeypatch.setattr(backends.module(name), "supports", lambda layer: "not this time")
    layer = in_dtype(random_layer("gru", Shape()), torch.bfloat16)
    assert backends.operator_backend("auto", layer) == "reference"
    assert backends.operator_backend("cuda", layer) == "cuda"


@pytest.mark.usefixtures("on_the_host")
def test_reasons() -> None:
    layer = in_dtype(random_layer("gru", Shape()), torch.bfloat16)
    assert backend.ready() is None
    assert backend.supports(layer) is None
    assert backend.supports(replace(layer, x=layer.x.to("meta"))) == "it takes CUDA tensors only, got meta"
    assert backend.supports(replace(layer, x=layer.x.double())) == (
        "it computes in bfloat16, float16 and float32 only, got torch.float64"
    )
    assert backend.supports(in_dtype(layer, torch.float32)) == (
        "it multiplies float32 as TF32 only, which torch.backends.cudnn forbids recurrent layers"
    )
    torch.backends.cudnn.allow_tf32 = True
    assert backend.supports(in_dtype(layer, torch.float32)) is None
    projected = in_dtype(random_layer("lstm", Shape(projection=2)), torch.bfloat16)
    assert backend.supports(projected) == "it has no projections (proj_size) yet"
    wide = in_dtype(random_layer("gru", Shape(hidden=5000)), torch.bfloat16)
    assert "it takes heads of up to" in str(backend.supports(wide))


@pytest.mark.usefixtures("on_the_host")
def test_sizes_leave_room_for_what_kernels_add(host_extension: ModuleType) -> None:
    """The batch is rounded up to whole tiles; a row of ys has the units of both directions."""
    most = 2**31 - plan(host_extension)["rows"]
    layer = in_dtype(random_layer("gru", Shape(hidden=1, directions=2)), torch.bfloat16)

    def supports(steps: int = 1, batch: int = 1, heads: int = 1) -> str | None:
        w_ih, w_hh = [w[:1].expand(3 * heads, -1) for w in layer.w_ih], [w.expand(heads, -1, -1) for w in layer.w_hh]
        return backend.supports(replace(layer, x=layer.x[:1, :1].expand(steps, batch, -1), w_ih=w_ih, w_hh=w_hh))

    assert supports(batch=most) is None
    for sizes, got in (({"batch": most + 1}, most + 1), ({"steps": most + 1}, most + 1), ({"heads": 2**30}, 2**31)):
        assert supports(**sizes) == f"it takes sizes up to {most}, got {got}"


def plan(module: ModuleType, **changed: Any) -> Any:
    """The planner's answer for an LSTM on an H100, except for `changed`."""
    usual = {"operation": "forward", "cell": "lstm", "element": "bfloat16", "units": 512, "batch": 16, "heads": 1}
    limits = {"directions": 1, "architectures": "80:90a", **module.limits(0)}
    return module.plan(**{**usual, **limits, **changed})


@pytest.mark.usefixtures("on_the_host")
def test_the_smallest_kernel_that_holds_a_head_is_planned(host_extension: ModuleType) -> None:
    kernels = host_extension.kernels()
    for cell in CELLS:
        for element in ("bfloat16", "float16", "tf32"):
            for operation in ("forward", "backward"):
                kind = {"operation": operation, "cell": cell, "element": element}
                sizes = [kernel["units"] for kernel in kernels if kernel.items() >= kind.items()]
                assert sizes == sorted(set(sizes))
                for below, units in zip([0, *sizes], sizes, strict=False):
                    for asked in (below + 1, units):
                        assert plan(host_extension, **kind, units=asked, batch=1024)["units"] == units


@pytest.mark.usefixtures("on_the_host")
def test_a_small_batch_takes_a_cluster_where_a_block_is_slower(host_extension: ModuleType) -> None:
    def blocks(**changed: Any) -> int:
        return int(plan(host_extension, **{"units": 64, **changed})["blocks"])

    for cell in CELLS:
        of_four = cell in ("lstm", "gru")
        for operation in ("forward", "backward"):
            assert blocks(operation=operation, cell=cell, element="tf32") == (4 if of_four else 8)
            assert blocks(operation=operation, cell=cell, element="tf32", batch=1024) == 1
        for element in ("bfloat16", "float16"):
            for units in (1, 64, 128):
                assert blocks(cell=cell, element=element, units=units) == 1
                kind = {"operation": "backward", "cell": cell, "element": element, "units": units}
                assert blocks(**kind) == 8
                assert blocks(**kind, batch=1024) == 1


@pytest.mark.usefixtures("on_the_host")
def test_clusters_that_would_take_turns_leave_it_to_blocks(host_extension: ModuleType) -> None:
    def blocks(**changed: Any) -> int:
        return int(plan(host_extension, **{"operation": "backward", "units": 64, **changed})["blocks"])

    assert [blocks(batch=batch) for batch in (128, 129)] == [8, 1]
    assert [blocks(batch=batch, heads=2, directions=2) for batch in (32, 33)] == [8, 1]
    assert [blocks(batch=batch, element="tf32") for batch in (256, 257)] == [4, 1]
    assert [blocks(multiprocessors=number) for number in (15, 16)] == [1, 8]
    assert [blocks(cluster=largest) for largest in (1, 4, 8)] == [1, 1, 8]
    assert [blocks(cluster=largest, element="tf32") for largest in (1, 4)] == [1, 4]
    without = {"operation": "backward", "units": 64, "capability": (8, 0), "cluster": 0}
    assert plan(host_extension, **without)["way"] == "grid"


@pytest.mark.usefixtures("on_the_host")
def test_a_block_can_be_asked_for(host_extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for operation in ("forward", "backward"):
        one = plan(host_extension, operation=operation, element="tf32", units=64, way="block")
        assert (one["way"], one["blocks"]) == ("cluster", 1)
    too_wide = "it takes heads of up to 128 units for lstm in bfloat16 under FASTRNN_CUDA_WAY=block, got 129"
    assert plan(host_extension, units=129, way="block") == too_wide
    none = "it has no kernel for lstm in bfloat16 under FASTRNN_CUDA_WAY=block"
    assert plan(host_extension, units=64, way="block", capability=(8, 0), cluster=0) == none
    monkeypatch.setenv("FASTRNN_CUDA_WAY", "block")
    assert backend.supports(in_dtype(random_layer("lstm", Shape(hidden=129)), torch.bfloat16)) == too_wide
    assert backend.supports(in_dtype(random_layer("lstm", Shape(hidden=128)), torch.bfloat16)) is None


@pytest.mark.usefixtures("on_the_host")
def test_clusters_cover_batch_heads_and_directions(host_extension: ModuleType) -> None:
    rows = plan(host_extension)["rows"]
    assert plan(host_extension, batch=rows)["groups"] == 1
    assert plan(host_extension, batch=rows + 1, heads=3, directions=2)["groups"] == 12
    assert "more than a grid holds" in plan(host_extension, batch=2**31 - 1, heads=8)


@pytest.mark.usefixtures("on_the_host")
def test_the_planner_says_why_not(host_extension: ModuleType) -> None:
    def said(**changed: Any) -> str:
        answer = plan(host_extension, **changed)
        assert isinstance(answer, str)
        return answer

    assert said(capability=(7, 5)) == "it needs a device of capability 8.0 or later, got 7.5"
    unknown = "its kernels were compiled for sm_80, sm_90a, which a device of capability 10.0 does not run"
    assert said(capability=(10, 0)) == unknown
    assert "capability 9.0 does not run" in said(architectures="80:86")
    assert "it takes heads of up to" in said(units=5000)
    for little in ({"shared_memory": 1000}, {"cluster": 8}, {"multiprocessors": 14}):
        answer = said(way="cluster", **little)
        assert "_forward_kernel<lstm, bfloat16, " in answer
        assert "does not fit the device" in answer


@pytest.mark.usefixtures("on_the_host")
@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [("90", (9, 0), True), ("100", (10, 3), True), ("100f", (10, 3), True), ("100a", (10, 3), False)],
)
def test_which_devices_run_an_architecture(
    host_extension: ModuleType, architectures: str, capability: tuple[int, int], runs: bool
) -> None:
    answer = plan(host_extension, architectures=architectures, capability=capability)
    assert isinstance(answer, dict) == runs


@pytest.mark.usefixtures("on_the_host")
def test_unknown_names_are_refused(host_extension: ModuleType) -> None:
    for argument in ("operation", "cell", "element", "way"):
        with pytest.raises(ValueError, match=f"{argument}: expected one of .*, got nonsense"):
            plan(host_extension, **{argument: "nonsense"})


def test_arguments_are_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their order is of no meaning; what is missing, unknown or of another kind is refused."""
    layer = in_dtype(random_layer("lstm", Shape(steps=2)), torch.bfloat16)
    expected, launch = backend.forward(layer, history=True, gates=True), extension.load().forward
    calls: list[Any] = []

    def reversed_launch(cell: str, element: str, values: dict[str, Any], *place: int) -> None:
        calls.append((cell, element, values, *place))
        launch(cell, element, dict(reversed(values.items())), *place)

    monkeypatch.setattr(extension.load(), "forward", reversed_launch)
    for group, wanted in zip(backend.forward(layer, history=True, gates=True), expected, strict=True):
        assert all(torch.equal(tensor, other) for tensor, other in zip(group, wanted, strict=True))
    ((cell, element, values, *place),) = calls
    refused: dict[str, dict[str, Any]] = {
        "zs is no argument": {"zs": 0},
        "gx must be an address": {"gx": 0.5},
        "w_hh must be a tuple of up to 2 addresses": {"w_hh": values["gx"]},
        "states0 must be a tuple of up to 8 addresses": {"states0": (0,) * 9},
        "T must be a size below": {"T": 2**31},
        "reverse must be a bool": {"reverse": 1},
    }
    for message, wrong in refused.items():
        with pytest.raises(TypeError, match=f"forward: {message}"):
            launch(cell, element, values | wrong, *place)
    del values["histories"]
    with pytest.raises(TypeError, match="forward: histories is missing"):
        launch(cell, element, values, *place)
