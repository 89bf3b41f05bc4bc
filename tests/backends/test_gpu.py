"""What only a GPU can show of the kernels for it: graphs, streams, no synchronisation, long and large tensors.

In sizes that reach each way in which either backend computes: `test_sizes_reach_their_ways` sees to that. Masks are
given nearly everywhere, since each variant of a Triton kernel takes seconds to compile.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import backends, extension
from fastrnn.backends.triton import configurations, scan
from fastrnn.cells import library
from fastrnn.cells.compiler import linearity
from fastrnn.cells.known import known
from tests.backends.cuda_results import in_dtype
from tests.devices import extension_is_for_gpus
from tests.random_layers import Shape, random_layer
from tests.tolerances import FACTOR, FLOOR, relative_error

pytestmark = pytest.mark.gpu

TRITON_MISSING = backends.module("triton").ready() or ("interpreted" if configurations.INTERPRETED else None)
CUDA_MISSING = backends.module("cuda").ready() or (None if extension_is_for_gpus() else "compiled for the CPU")
MISSING = {"triton": TRITON_MISSING, "cuda": CUDA_MISSING}


def of_backend(backend: str, *values: Any, id: str | None = None) -> Any:
    """A test's parameters, the backend first, skipped where it has no GPU."""
    reason = MISSING[backend]
    skipped = pytest.mark.skipif(reason is not None, reason=f"{backend}: {reason}")
    return pytest.param(backend, *values, id=id or backend, marks=skipped)


CELLS = {"RNN": "rnn_tanh", "GRU": "gru", "LSTM": "lstm"}
kinds = pytest.mark.parametrize("kind", CELLS)
both = pytest.mark.parametrize("backend", [of_backend("triton"), of_backend("cuda")])
triton = pytest.mark.parametrize("backend", [of_backend("triton")])
cuda = pytest.mark.parametrize("backend", [of_backend("cuda")])
WAYS = {
    "triton-persistent": ("triton", 64),
    "triton-steps": ("triton", 640),
    "cuda-block and cluster of 8": ("cuda", 64),
    "cuda-cluster of 8": ("cuda", 256),
    "cuda-cluster of 16": ("cuda", 512),
    "cuda-grid": ("cuda", 1024),
}
ways = pytest.mark.parametrize(("backend", "hidden"), [of_backend(*way, id=name) for name, way in WAYS.items()])
OTHERS = {
    "triton-persistent": ("triton", 64, "peephole_lstm"),
    "triton-steps of several warps": ("triton", 640, "layer_norm_lstm"),
    "triton-scan": ("triton", 64, "mingru"),
    "triton-pointwise": ("triton", 64, "indrnn"),
    "cuda-cluster": ("cuda", 256, "peephole_lstm"),
    "cuda-grid": ("cuda", 1024, "peephole_lstm"),
}
"""Of the library's cells, which NVRTC compiles for the CUDA backend."""
layers = pytest.mark.parametrize(
    ("backend", "hidden", "kind"),
    [
        *(of_backend(*way, kind, id=f"{name}-{kind}") for name, way in WAYS.items() for kind in CELLS),
        *(of_backend(*other, id=f"{name}-{other[2]}") for name, other in OTHERS.items()),
    ],
)
STEPS = 130
"""So many are a scan, where Triton makes one."""
CUDA_WAYS = {64: ("cluster", (1, 8)), 256: ("cluster", (8, 8)), 512: ("cluster", (16, 16)), 1024: ("grid", None)}
"""By units, of which way the kernels are, and of how many blocks a cluster, forward and backward in a small batch."""
forced = pytest.mark.parametrize(
    ("backend", "way"),
    [
        of_backend("triton", None),
        of_backend("cuda", "cluster", id="cuda-cluster"),
        of_backend("cuda", "block", id="cuda-block"),
        of_backend("cuda", "grid", id="cuda-grid"),
    ],
)
"""Of a small layer, which each of CUDA's ways serves, and a block on its own."""

Step = tuple[Tensor, list[Tensor]]


def make(kind: str, hidden: int, backend: str, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
    options |= {"backend": backend, "dtype": dtype}
    if kind in CELLS:
        return getattr(fastrnn, kind)(48, hidden, **options)
    return fastrnn.Recurrent(getattr(library, kind), 48, hidden, **options)


def training_step(module: Any, x: Tensor, dy: Tensor, **arguments: Tensor) -> Step:
    output = module(x, **arguments)[0]
    return output, list(torch.autograd.grad(output, [x, *module.parameters()], dy))


def given(module: Any, steps: int, batch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """x, the output's gradient, and masks."""
    x = torch.randn(steps, batch, 48, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(steps, batch, module.hidden_size * (1 + module.bidirectional), dtype=torch.bfloat16)
    return x, dy, {"lengths": torch.randint(0, steps + 1, (batch,)), "resets": torch.rand(steps, batch) < 0.1}


def assert_same_bits(got: Step, want: Step) -> None:
    for one, other in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        assert torch.equal(one, other)


@kinds
@ways
def test_sizes_reach_their_ways(kind: str, backend: str, hidden: int) -> None:
    if backend == "triton":
        layer = in_dtype(random_layer(CELLS[kind], Shape(hidden=hidden)), torch.bfloat16)
        tiles = [configurations.forward_tile(layer), configurations.backward_tile(layer)]
        assert [tile is not None for tile in tiles] == [hidden == 64] * 2
        return
    planner = extension.load()
    limits = planner.limits(0)
    if limits["cluster"] < 16:
        pytest.skip("the device has no clusters of 16 blocks")
    sizes = {"units": hidden, "batch": 9, "heads": 1, "directions": 1}
    for index, operation in enumerate(("forward", "backward")):
        kernel = {"operation": operation, "cell": CELLS[kind], "element": "bfloat16"}
        plan = planner.plan(**kernel, **sizes, architectures=planner.architectures, **limits)
        way, blocks = CUDA_WAYS[hidden]
        assert plan["way"] == way
        assert blocks is None or plan["blocks"] == blocks[index]


@triton
def test_a_long_layer_is_a_scan(backend: str) -> None:
    layer = random_layer(known(library.mingru).key, Shape(steps=STEPS, batch=9, hidden=64, directions=2))
    assert layer.cell.program is not None
    assert scan.chunk_steps(layer, linearity.forward(layer.cell.program), moved=32) is not None


@cuda
def test_a_device_of_capability_9_runs_clusters_of_16_blocks(backend: str) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("it is of another capability")
    assert extension.load().limits(0)["cluster"] == 16


@layers
def test_a_training_step_in_a_cuda_graph(kind: str, hidden: int, backend: str) -> None:
    module = make(kind, hidden, backend, bidirectional=True)
    x, dy, masks = given(module, STEPS, 9)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        training_step(module, x, dy, **masks)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = training_step(module, x, dy, **masks)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        expected = training_step(module, x, dy, **masks)
        torch.cuda.synchronize()
        assert_same_bits(captured, expected)


@layers
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # torch's, at its first use
def test_nothing_synchronises(kind: str, hidden: int, backend: str) -> None:
    module = make(kind, hidden, backend)
    x, dy, masks = given(module, STEPS, 5)
    training_step(module, x, dy, **masks)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(module, x, dy, **masks)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@triton
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_lengths_from_the_host(backend: str) -> None:
    """Lists and the CPU's tensors serve as the device's do, and nothing waits for their copies."""
    module = make("GRU", 64, backend)
    x, _, _ = given(module, 7, 5)
    numbers = [7, 0, 3, 1, 5]
    with torch.no_grad():
        expected = module(x, lengths=torch.tensor(numbers, device=x.device))[0]
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = [module(x, lengths=form)[0] for form in (numbers, torch.tensor(numbers, device="cpu"))]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, expected) for one in got)


@layers
def test_results_repeat_bitwise(kind: str, hidden: int, backend: str) -> None:
    module = make(kind, hidden, backend)
    x, dy, masks = given(module, STEPS, 70)
    assert_same_bits(training_step(module, x, dy, **masks), training_step(module, x, dy, **masks))


@layers
def test_another_stream(kind: str, hidden: int, backend: str) -> None:
    module = make(kind, hidden, backend)
    x, dy, masks = given(module, STEPS, 9)
    expected = training_step(module, x, dy, **masks)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = training_step(module, x, dy, **masks)
    torch.cuda.current_stream().wait_stream(side)
    assert_same_bits(got, expected)


class Long(NamedTuple):
    """A layer's parameters, its input, and what torch computes from them in float64."""

    state: dict[str, Tensor]
    x: Tensor
    truth: Tensor


@cache
def long_sequence(kind: str) -> Long:
    """T = 70,000: more than 16 bits hold. By torch's loop over steps, which takes seconds."""
    module = getattr(nn, kind)(48, 32)
    x = torch.randn(70_000, 2, 48)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        return Long(state, x, module.double()(x.double())[0])


@kinds
@forced
def test_a_very_long_sequence(kind: str, backend: str, way: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In TF32, whose products are cut to 10 bits in each step."""
    if way is not None:
        monkeypatch.setenv("FASTRNN_CUDA_WAY", way)
    torch.backends.cudnn.allow_tf32 = True
    state, x, truth = long_sequence(kind)
    module = make(kind, 32, backend, torch.float32)
    module.load_state_dict(state)
    with torch.no_grad():
        got = module(x)[0]
    assert relative_error(got, truth) < 1e-2
    assert relative_error(got[-100:], truth[-100:]) < 1e-2


@forced
def test_more_than_two_to_the_31_elements(backend: str, way: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last sequences of a batch whose offsets do not fit 32 bits are what they are alone. Takes 10 GB or so."""
    if way is not None:
        monkeypatch.setenv("FASTRNN_CUDA_WAY", way)
    steps, batch, hidden = 2048, 8200, 128
    assert steps * batch * hidden > 2**31
    module = fastrnn.RNN(1, hidden, backend=backend, dtype=torch.bfloat16)
    x = torch.randn(steps, batch, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        last, alone = module(x)[0][:, -8:].clone(), module(x[:, -8:])[0]
    torch.cuda.empty_cache()  # other processes may share the device
    assert relative_error(last, alone) < 1e-2


@kinds
@triton
def test_float32_without_tf32(kind: str, backend: str) -> None:
    """Three TF32 products are about as precise as float32."""
    module = make(kind, 64, backend, torch.float32)
    wide = make(kind, 64, "reference", torch.float64)
    wide.load_state_dict(module.state_dict())
    x = torch.randn(30, 20, 48)
    with torch.no_grad():
        assert relative_error(module(x)[0], wide(x.double())[0]) < 3e-6


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("cudnn")
def test_long_memory_in_16_bit(kind: str, dtype: torch.dtype, backend: str) -> None:
    """Forget and update gates near 1: errors of tanh.approx do not add up to more than cuDNN's own, beside float64."""
    module, own = make(kind, 64, backend, dtype), getattr(nn, kind)(48, 64, dtype=dtype)
    wide = make(kind, 64, "reference", torch.float64)
    with torch.no_grad():
        module.bias_hh_l0[64:128] += 6
        for other in (own, wide):
            other.load_state_dict(module.state_dict())
        x = torch.randn(2000, 4, 48, dtype=dtype)
        truth = wide(x.double())[0]
        assert relative_error(module(x)[0], truth) <= FACTOR * relative_error(own(x)[0], truth) + FLOOR[dtype]


@both
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32")  # inductor's advice
def test_compiled_with_inductor(backend: str) -> None:
    """A bidirectional layer between operations that the compiler generates kernels for."""
    module = make("LSTM", 64, backend, bidirectional=True)
    x, dy, masks = given(module, 20, 9)

    def run(x: Tensor) -> Tensor:
        return module(torch.tanh(x), **masks)[0] * 2

    results = []
    for function in (torch.compile(run, fullgraph=True), run):
        output = function(x)
        results.append([output, *torch.autograd.grad(output, [x, *module.parameters()], dy)])
    for got, want in zip(*results, strict=True):
        assert relative_error(got, want) < 1e-2
