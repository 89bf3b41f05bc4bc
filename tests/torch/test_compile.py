"""torch.compile: one graph for every T and B, the results and gradients of eager mode, and no stale ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch._inductor.config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map_only

import fastrnn
from fastrnn.backends import reference
from fastrnn.cells import CELLS
from tests.random_layers import Shape, cast, random_layer
from tests.torch_parity import assert_close, lstm_first, numba_first, operator_backends, skip_unless_projecting

MODULES = [
    ("RNN", {}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    pytest.param("LSTM", {"batch_first": True, "recompute": True}, marks=pytest.mark.exhaustive),
    ("LSTM", {"proj_size": 2, "bidirectional": True}),
]
STACK = {"num_layers": 2, "bidirectional": True, "dropout": 0.4}


@pytest.fixture(autouse=True)
def _no_graph_counted(fresh_compiler: None) -> None:
    torch._dynamo.utils.counters.clear()


def count_graphs() -> int:
    """How many were compiled in a test. One that the compiler starts anew, to make a float constant, counts once."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class Model(nn.Module):
    """A recurrent module between pointwise code and products, which a compiler would like to fuse with it."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.before = nn.Linear(3, 4, dtype=torch.float64)
        self.rnn = make(name, **options)
        width = (self.rnn.proj_size or 5) * (2 if self.rnn.bidirectional else 1)
        self.after = nn.Linear(width, 2, dtype=torch.float64)

    def forward(self, x: Tensor, hx: Any = None, **arguments: Tensor) -> tuple[Tensor, Any]:
        y, state = self.rnn(torch.tanh(self.before(x)), hx, **arguments)
        return self.after(nn.functional.gelu(y)) + 1, state


def make(name: str, **options: Any) -> Any:
    return getattr(fastrnn, name)(4, 5, **{"dtype": torch.float64, **options})


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def results(parameters: Any, run: Callable[..., Any], *given: Any, **arguments: Any) -> list[Tensor]:
    """What `run` returns, and the gradients of the sum of its squares for what is given and for the parameters."""
    torch.manual_seed(1)
    outputs = tree_leaves(run(*given, **arguments))
    loss = sum(output.square().sum() for output in outputs)
    wanted = [t for t in tree_leaves(given) if isinstance(t, Tensor) and t.requires_grad]
    return [*outputs, *torch.autograd.grad(loss, [*wanted, *parameters])]


def assert_as_eager(module: nn.Module, compiled: Callable[..., Any], *given: Any, **arguments: Any) -> None:
    got, expected = (results(module.parameters(), run, *given, **arguments) for run in (compiled, module))
    assert_close(got, expected)


def masks(steps: int, batch: int, batch_first: bool = False) -> dict[str, Tensor]:
    """Random lengths and resets."""
    shape = (batch, steps) if batch_first else (steps, batch)
    return {"lengths": torch.randint(0, steps + 1, (batch,)), "resets": torch.rand(shape) < 0.3}


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # what inductor imports is scripted
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("RNN", {"nonlinearity": "relu", "batch_first": True}, marks=pytest.mark.exhaustive, id="RNN"),
        pytest.param("GRU", STACK, marks=pytest.mark.exhaustive, id="GRU"),
        pytest.param("LSTM", {"proj_size": 2}, id="LSTM"),
    ],
)
def test_inductor_within_a_model_with_marked_dimensions(name: str, options: dict[str, Any]) -> None:
    """Generated code around the operators takes their results as they lie in memory, once for every T and B."""
    model = Model(name, **options)
    compiled = torch.compile(model, fullgraph=True, mode="default")
    with torch._inductor.config.patch(fallback_random=True):  # dropout by torch's generator, as in eager mode
        for steps, batch in ((5, 3), (7, 2), (4, 6)):
            first = options.get("batch_first", False)
            x, arguments = random(*((batch, steps) if first else (steps, batch)), 3), masks(steps, batch, first)
            hx = (random(1, batch, 2), random(1, batch, 5)) if name == "LSTM" else None
            for tensor in (x, arguments["resets"]):
                torch._dynamo.mark_dynamic(tensor, (0, 1))
            torch._dynamo.mark_dynamic(arguments["lengths"], 0)
            for state in hx or ():
                torch._dynamo.mark_dynamic(state, 1)
            assert_as_eager(model, compiled, x, hx, **arguments)
    assert count_graphs() == 1


@pytest.mark.parametrize(("name", "options"), MODULES, ids=str)
@numba_first
def test_one_graph_for_every_length_and_batch(name: str, options: dict[str, Any], backend: str) -> None:
    if "proj_size" in options:
        skip_unless_projecting(backend)
    module = make(name, backend=backend, **options)
    record = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=record)
    for steps, batch in ((5, 3), (7, 2), (4, 6)):
        first = options.get("batch_first", False)
        x = random(*((batch, steps) if first else (steps, batch)), 4)
        assert_as_eager(module, compiled, x, **masks(steps, batch, first))
    assert count_graphs() == 1
    calls = [str(node.target) for node in record.graphs[-1].graph.nodes]
    cell = "rnn_tanh" if name == "RNN" else name.lower()
    assert [call for call in calls if "fastrnn" in call] == [f"fastrnn.{cell}_forward"] * module.num_layers


@lstm_first
def test_dropout_draws_as_in_eager_mode(name: str) -> None:
    module = make(name, **STACK)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = random(5, 3, 4)
    assert_as_eager(module, compiled, x)
    torch.manual_seed(2)
    assert not torch.equal(compiled(x)[0], results([], compiled, x)[0])


@lstm_first
def test_cells_in_an_unrolled_loop(name: str) -> None:
    cell = make(f"{name}Cell")

    def unrolled(x: Tensor, hx: Any) -> Any:
        states = []
        for row in x:
            hx = cell(row, hx)
            states.append(hx[0] if name == "LSTM" else hx)
        return torch.stack(states), hx

    compiled = torch.compile(unrolled, fullgraph=True, backend="aot_eager")
    x, state = random(4, 3, 4), random(3, 5)
    hx = (state, random(3, 5)) if name == "LSTM" else state
    got, expected = (results(cell.parameters(), run, x, hx) for run in (compiled, unrolled))
    assert_close(got, expected)


@lstm_first
def test_training_evaluation_and_modes_without_gradients(name: str) -> None:
    """Each has a graph of its own, which is found again."""
    module = make(name, **STACK)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = random(5, 3, 4)
    graphs = []
    for _ in range(2):
        for training in (True, False):
            module.train(training)
            assert_as_eager(module, compiled, x)
            for mode in (torch.no_grad, torch.inference_mode):
                with mode():
                    torch.manual_seed(1)
                    got = compiled(x.detach())
                    torch.manual_seed(1)
                    assert_close(tree_leaves(got), tree_leaves(module(x)))
        graphs.append(count_graphs())
    assert graphs == [6, 6]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@lstm_first
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """On, off and on again: autocast's state belongs to what a graph was compiled for."""
    # By name, since `auto` takes torch's kernels for some in eager mode.
    module = make(name, dtype=torch.float32, backend="numba")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 3, 4, requires_grad=True)
    for enabled in (True, False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            got, expected = (results(module.parameters(), run, x) for run in (compiled, module))
        assert got[0].dtype == (dtype if enabled else torch.float32)
        assert_close(got, expected)


@lstm_first
def test_a_change_of_use_backend_takes_effect(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    usual = reference.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append("reference")
        return usual(*arguments, **options)

    monkeypatch.setattr(reference, "forward", counted)
    module = make(name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = random(5, 3, 4)
    expected = module(x)[0]
    for backend, reached in (("numba", 0), ("reference", 1), ("numba", 1), ("reference", 2)):
        with fastrnn.use_backend(backend):
            assert_close(compiled(x)[0], expected)
        assert len(calls) == reached


@lstm_first
def test_changed_parameters_take_effect_in_the_same_graph(name: str) -> None:
    module, other = make(name), make(name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = random(5, 3, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    outputs = []

    def step() -> None:
        compiled(x)[0].square().sum().backward()
        optimizer.step()

    def change() -> None:
        with torch.no_grad():
            module.weight_hh_l0.mul_(0.5)

    def replace() -> None:
        module.bias_hh_l0.data = module.bias_hh_l0.data + 1

    for act in (lambda: None, step, change, replace, lambda: module.load_state_dict(other.state_dict())):
        act()
        assert_as_eager(module, compiled, x)
        outputs.append(compiled(x)[0].detach())
    assert all(not torch.equal(a, b) for a, b in pairwise(outputs))
    assert count_graphs() == 1


@pytest.mark.parametrize("dimension", [0, 1], ids=["time", "batch"])
@lstm_first
def test_sizes_that_vary_unannounced(name: str, dimension: int) -> None:
    """A graph for the first size, one for all others; the compiler gives 0 and 1 graphs of their own."""
    module = make(name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for size in (5, 3, 7, 1, 9, 0, 2, 12, 1, 0, 6, 8, 10, 11):
        shape = [4, 4, 4]
        shape[dimension] = size
        assert_as_eager(module, compiled, random(*shape))
    assert count_graphs() == 4


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
@lstm_first
def test_a_graph_that_breaks_within_the_module(name: str) -> None:
    """At a hook, and where a parametrization computes a weight: what is left of the graph gives the same."""

    class Broken(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return 2 * weight

    module = make(name)
    module.register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    nn.utils.parametrize.register_parametrization(module, "weight_hh_l0", Broken())
    compiled = torch.compile(module, backend="aot_eager")
    for _ in range(3):
        assert_as_eager(module, compiled, random(5, 3, 4))
    assert count_graphs() > 1


@lstm_first
def test_parametrized_weights_stay_in_the_graph(name: str) -> None:
    module = nn.utils.parametrizations.weight_norm(make(name), "weight_hh_l0")
    assert_as_eager(module, torch.compile(module, fullgraph=True, backend="aot_eager"), random(5, 3, 4))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
@pytest.mark.parametrize("enforce_sorted", [False, True], ids=["indices", "no-indices"])
@lstm_first
def test_packed_sequences(name: str, enforce_sorted: bool) -> None:
    """One graph, if there are indices, which tell how many sequences there are; outside of graphs otherwise."""
    module = make(name, **STACK)
    compiled = torch.compile(module, fullgraph=not enforce_sorted, dynamic=True, backend="aot_eager")
    for lengths in ([5, 3, 1], [7, 7, 4, 2], [9, 6]):
        lengths = lengths if enforce_sorted else lengths[::-1]
        padded = torch.zeros(max(lengths), len(lengths), 4)
        _, *indices = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=enforce_sorted)
        data = random(sum(lengths), 4)

        def rows(run: Any, data: Tensor, indices: Any = indices) -> Any:
            output, state = run(PackedSequence(data, *indices))
            return output.data, state

        got, expected = (results(module.parameters(), partial(rows, run), data) for run in (compiled, module))
        assert_close(got, expected)
    assert enforce_sorted or count_graphs() == 1


def test_lengths_out_of_range_raise_in_a_compiled_graph_too() -> None:
    compiled = torch.compile(fastrnn.GRU(3, 4), fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"gru: lengths must lie within \[0, T=5\], got 6 at index 1"):
        compiled(torch.randn(5, 2, 3), lengths=torch.tensor([5, 6]))


def strided(tensor: Tensor) -> Tensor:
    """Equal values, which lie in memory in the reverse order of dimensions with gaps between."""
    memory = tensor.new_empty((*tensor.shape[::-1], 2))[..., 0]
    return memory.permute(*reversed(range(tensor.dim()))).copy_(tensor.detach())


@pytest.mark.parametrize(
    "shape",
    [Shape(), Shape(steps=1), Shape(steps=0), Shape(batch=0), Shape(directions=2, lengths=True, resets=True)],
    ids=str,
)
@pytest.mark.parametrize("cell", CELLS)
@operator_backends
def test_results_lie_in_memory_as_compilers_are_told(cell: str, shape: Shape, backend: str) -> None:
    """However the arguments lie: generated code relies on it."""
    layer = random_layer(cell, replace(shape, projection=3) if cell == "lstm" and backend == "numba" else shape)
    arguments = cast(layer, torch.float32).with_tensors(strided).arguments()

    def check(direction: str, *arguments: Any) -> Any:
        operator, mode = getattr(torch.ops.fastrnn, f"{cell}_{direction}"), FakeTensorMode()
        results = operator(*arguments)
        with mode:
            told = operator(*tree_map_only(Tensor, mode.from_tensor, list(arguments)))
        got, expected = ([(t.shape, t.stride(), t.dtype) for t in tree_leaves(each)] for each in (results, told))
        assert got == expected
        return results

    check("forward", *arguments, False, False, backend)
    states, finals, saved = check("forward", *arguments, True, True, backend)
    d_states, d_finals = [strided(state) for state in states], [strided(final) for final in finals]
    check("backward", d_states, d_finals, states, saved, *arguments, True, True, backend)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.gpu
@lstm_first
def test_cuda_graphs(name: str) -> None:
    module = make(name, device="cuda", dtype=torch.float32)
    compiled = torch.compile(module, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):  # the first call warms up, the second is recorded
        x = torch.randn(5, 3, 4, device="cuda", requires_grad=True)
        torch.compiler.cudagraph_mark_step_begin()
        got = [tensor.clone() for tensor in results(module.parameters(), compiled, x)]
        assert_close(got, results(module.parameters(), module, x), 1e-3)
