"""fastrnn's operators as torch's core operators: the same values, in programs for every T that need no fastrnn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

import fastrnn
import fastrnn.export
from fastrnn.backends import products, reference
from fastrnn.cells import CELLS
from tests.random_layers import AWKWARD, PROJECTED, Shape, random_layer
from tests.torch_parity import assert_close

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),  # torch's, of its own trees
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]

SHAPES = [shape for shape in AWKWARD if shape.batch and not shape.saturated]
CASES = [(name, shape) for name in CELLS for shape in SHAPES] + [("lstm", shape) for shape in PROJECTED if shape.batch]


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_they_give_what_the_operators_do(name: str, shape: Shape) -> None:
    layer = random_layer(name, shape)
    operator = getattr(torch.ops.fastrnn, f"{name}_forward").default
    live = products.live_steps(layer)
    for kept in (True, False):
        found = fastrnn.export.decompositions()[operator](*layer.arguments(), kept, kept, "auto")
        expected = reference.forward(layer, history=kept, gates=kept)
        if live is not None:  # what is saved beyond is unspecified
            found = found._replace(saved=[torch.where(live[..., None], tensor, 0) for tensor in found.saved])
        assert_close(tree_leaves(found), tree_leaves(expected))


def core(model: nn.Module, args: tuple[Any, ...], shapes: Any, **options: Any) -> ExportedProgram:
    """The program of core operators, none of which is fastrnn's, here and in the graphs within."""
    with torch.no_grad():
        program = torch.export.export(model.eval(), args, dynamic_shapes=shapes)
    table = torch.export.default_decompositions()
    table.update(fastrnn.export.decompositions(**options))
    program = program.run_decompositions(table)
    assert not any("fastrnn" in name for name in targets(program))
    return program


def targets(program: ExportedProgram) -> list[str]:
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("RNN", {"nonlinearity": "relu", "bias": False}), ("GRU", {}), ("LSTM", {"proj_size": 3})],
    ids=["RNN", "GRU", "LSTM"],
)
def test_one_program_for_every_length_and_batch(name: str, options: dict[str, Any]) -> None:
    options |= {"bidirectional": True, "batch_first": True}
    ours, theirs = (getattr(lib, name)(4, 5, **options).eval() for lib in (fastrnn, nn))
    theirs.load_state_dict(ours.state_dict())
    program = core(ours, (torch.randn(3, 5, 4),), ({0: Dim("B"), 1: Dim("T")},))
    assert targets(program).count("scan") == 2
    for sizes in ((2, 9), (4, 1)):
        x = torch.randn(*sizes, 4)
        with torch.no_grad():
            assert_close(tree_leaves(program.module()(x)), tree_leaves(theirs(x)), 1e-6)


class Ragged(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, lengths: Tensor, resets: Tensor) -> Any:
        return self.rnn(x, lengths=lengths, resets=resets)


class Whole(Ragged):
    """All that an LSTM takes, one tensor as both states, and the states of every step."""

    def forward(self, x: Tensor, lengths: Tensor, resets: Tensor, h: Tensor) -> Any:  # type: ignore[override]
        return self.rnn(x, (h, h), lengths=lengths, resets=resets, return_states=True)


def test_lengths_resets_states_and_one_tensor_as_both_states() -> None:
    def arguments(steps: int, batch: int) -> tuple[Tensor, ...]:
        lengths, resets = torch.randint(0, steps + 1, (batch,)), torch.rand(steps, batch) < 0.3
        return torch.randn(steps, batch, 4), lengths, resets, torch.randn(1, batch, 5)

    T, B = Dim("T"), Dim("B")
    model = Whole(fastrnn.LSTM(4, 5))
    program = core(model, arguments(5, 3), ({0: T, 1: B}, {0: B}, {0: T, 1: B}, {1: B}))
    given = arguments(9, 4)
    with torch.no_grad():
        assert_close(tree_leaves(program.module()(*given)), tree_leaves(model(*given)), 1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of what ExecuTorch imports
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_executorch_runs_every_length(name: str) -> None:
    runtime, exir = (pytest.importorskip(f"executorch.{part}") for part in ("runtime", "exir"))

    def arguments(steps: int) -> tuple[Tensor, ...]:
        return torch.randn(steps, 3, 4), torch.tensor([steps, 0, 1]), torch.rand(steps, 3) < 0.3

    options = {"proj_size": 3} if name == "LSTM" else {}
    model, T = Ragged(getattr(fastrnn, name)(4, 5, bidirectional=True, **options)), Dim("T", min=2, max=20)
    program = core(model, arguments(5), ({0: T}, {}, {0: T}))
    written = exir.to_edge(program).to_executorch().buffer
    loaded = runtime.Runtime.get().load_program(written)
    method = loaded.load_method("forward")
    for steps in (5, 2, 20):
        given = arguments(steps)
        with torch.no_grad():
            assert_close(method.execute(list(given)), tree_leaves(model(*given)), 1e-6)


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = fastrnn.LSTMCell(4, 5), fastrnn.GRUCell(5, 6), fastrnn.RNNCell(6, 3)

    def forward(self, x: Tensor) -> Any:
        h, c = self.lstm(x)
        return self.rnn(self.gru(h)), c


@pytest.mark.parametrize(
    ("model", "x", "options"),
    [(Cells(), torch.randn(3, 4), {}), (fastrnn.GRU(4, 5), torch.randn(6, 3, 4), {"unroll": True})],
    ids=["cells", "unrolled"],
)
def test_a_known_number_of_steps_needs_no_scan(model: nn.Module, x: Tensor, options: dict[str, Any]) -> None:
    program = core(model, (x,), None, **options)
    assert "scan" not in targets(program)
    with torch.no_grad():
        assert_close(tree_leaves(program.module()(x)), tree_leaves(model(x)), 1e-6)


def test_every_number_of_steps_cannot_be_unrolled() -> None:
    with pytest.raises(ValueError, match="gru: unroll needs a fixed number of steps, and the program is for every T"):
        core(fastrnn.GRU(4, 5), (torch.randn(6, 3, 4),), ({0: Dim("T")},), unroll=True)
