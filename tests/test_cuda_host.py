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
from fastrnn.backends.layer import Gradients, Layer, Residuals
from fastrnn.cells import CELLS
from tests import cuda_host
from tests.arithmetic import yardsticks
from tests.devices import extension_is_for_gpus
from tests.layers import AWKWARD, Shape, compute, cotangents, parameters, random_layer, rounded
from tests.tolerances import FLOOR, assert_accurate, relative_error

pytestmark = pytest.mark.usefixtures("poisoned_memory", "kernels")

HOST = pytest.param("host", marks=pytest.mark.skipif(bool(cuda_host.missing()), reason=str(cuda_host.missing())))
KERNELS = [HOST, *(["cuda"] if extension_is_for_gpus() else [])]
"""Compiled for the CPU by these tests; and those that are installed."""

DTYPES = (torch.bfloat16, torch.float16)
HEADS = (
    Shape(batch=9, hidden=38, heads=2, directions=2, lengths=True, resets=True),
    Shape(steps=3, hidden=6, heads=3, bias=False),
)
CLUSTERS = (Shape(steps=4, batch=11, hidden=200), Shape(steps=3, batch=3, hidden=256, directions=2, resets=True))
"""Units spread over the blocks of a cluster."""
CASES = [
    pytest.param(cell, shape, recompute, id=f"{cell}-{shape}-{'preactivations' if recompute else 'gates'}")
    for cell in CELLS
    for shape in (*AWKWARD, *HEADS, *CLUSTERS)
    for recompute in (False, True)
    if CELLS[cell].saved or not recompute
]
SEEDS = range(1, 21)
SEEDED = [
    *(
        (cell, Shape(steps=9, batch=11, hidden=40, directions=2, lengths=True, resets=True), d)
        for d in DTYPES
        for cell in CELLS
    ),
    *((cell, Shape(steps=4, batch=2, hidden=256), torch.bfloat16) for cell in CELLS),
]
"""A block on its own, and a cluster of eight blocks: threads by the thousand, and slow."""


@pytest.fixture(scope="session")
def host_extension(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    cache = getattr(request.config, "cache", None)  # None under -p no:cacheprovider
    return cuda_host.load(cache.mkdir("fastrnn-host") if cache else tmp_path_factory.mktemp("fastrnn-host"))


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which extension the tests run: the one for the CPU takes the installed one's place."""
    if request.param == "host":
        for_host = request.getfixturevalue("host_extension")
        monkeypatch.setattr(extension, "_load", lambda: for_host)
    name: str = request.param
    return name


@pytest.fixture
def on_the_host(kernels: str) -> None:
    """For tests of what only the extension for the CPU does."""
    if kernels != "host":
        pytest.skip("it is for the host's kernels")


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the seed of the schedules."""
    return lambda seed: monkeypatch.setenv("FASTRNN_HOST_SEED", str(seed))


def in_dtype(layer: Layer, dtype: torch.dtype) -> Layer:
    def cast(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.to(dtype) for tensor in tensors]

    return replace(
        layer,
        x=layer.x.to(dtype),
        w_ih=cast(layer.w_ih),
        w_hh=cast(layer.w_hh),
        biases=cast(layer.biases),
        states0=cast(layer.states0),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cell", "shape", "recompute"), CASES)
def test_values_and_gradients(cell: str, shape: Shape, recompute: bool, dtype: torch.dtype) -> None:
    layer = rounded(random_layer(cell, shape), dtype)
    grads = tuple([d.to(dtype).double() for d in group] for group in cotangents(layer))
    truth = compute(layer, torch.float64, "reference", grads)
    others = yardsticks(layer, dtype, grads, "cuda")
    for name, result in compute(layer, dtype, "cuda", grads, recompute).items():
        assert_accurate(name, result, truth[name], *(other[name] for other in others))


@pytest.mark.parametrize(("cell", "shape", "dtype"), SEEDED, ids=str)
def test_every_schedule_gives_the_same_bits(
    cell: str, shape: Shape, dtype: torch.dtype, seeded: Callable[[int], None]
) -> None:
    layer = random_layer(cell, shape)
    grads = cotangents(layer)
    first: dict[str, torch.Tensor] = {}
    for seed in SEEDS:
        seeded(seed)
        result = compute(layer, dtype, "cuda", grads)
        first = first or result
        assert all(torch.equal(first[name], result[name]) for name in first), seed


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


@pytest.mark.parametrize("cell", CELLS)
def test_inference_gives_the_same_bits(cell: str) -> None:
    layer = in_dtype(random_layer(cell, AWKWARD[14]), torch.bfloat16)
    kept, lean = (backend.forward(layer, history=keep, gates=keep) for keep in (True, False))
    assert (len(lean.states), len(lean.saved)) == (1, 0)
    for tensor, other in zip([kept.states[0], *kept.finals], [lean.states[0], *lean.finals], strict=True):
        assert torch.equal(tensor, other)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_stay_in_their_sequence(cell: str, bad: float) -> None:
    layer = in_dtype(random_layer(cell, Shape(batch=7, hidden=17, directions=2)), torch.bfloat16)
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
    assert backend.supports(replace(layer, x=layer.x.float())) == (
        "it computes in bfloat16 and float16 only yet, got torch.float32"
    )
    projected = in_dtype(random_layer("lstm", Shape(projection=2)), torch.bfloat16)
    assert backend.supports(projected) == "it has no projections (proj_size) yet"
    wide = in_dtype(random_layer("gru", Shape(hidden=1500)), torch.bfloat16)
    assert "it takes heads of up to" in str(backend.supports(wide))
    endless = layer.x[:1, :1, :1].expand(2**31, 1, 1)
    assert "it takes sizes up to 2147483647" in str(backend.supports(replace(layer, x=endless)))


def plan(module: ModuleType, **changed: Any) -> Any:
    """The planner's answer for an LSTM on an H100, except for `changed`."""
    usual = {"operation": "forward", "cell": "lstm", "element": "bfloat16", "units": 512, "batch": 16, "heads": 1}
    limits = {"directions": 1, "architectures": "80:90a", **module.limits(0)}
    return module.plan(**{**usual, **limits, **changed})


@pytest.mark.usefixtures("on_the_host")
def test_the_smallest_kernel_that_holds_a_head_is_planned(host_extension: ModuleType) -> None:
    kernels = host_extension.kernels()
    for cell in CELLS:
        for element in ("bfloat16", "float16"):
            for operation in ("forward", "backward"):
                kind = {"operation": operation, "cell": cell, "element": element}
                sizes = [kernel["units"] for kernel in kernels if kernel.items() >= kind.items()]
                assert sizes == sorted(set(sizes))
                for below, units in zip([0, *sizes], sizes, strict=False):
                    for asked in (below + 1, units):
                        assert plan(host_extension, **kind, units=asked)["units"] == units


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
        answer = said(**little)
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
    for argument in ("operation", "cell", "element"):
        with pytest.raises(ValueError, match=f"{argument}: expected one of .*, got nonsense"):
            plan(host_extension, **{argument: "nonsense"})
