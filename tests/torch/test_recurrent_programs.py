"""Modules of any cell under torch.compile, torch.export and torch.jit.trace: programs that hold the whole cell."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

import fastrnn
import fastrnn.export
from fastrnn import ops
from fastrnn.cells import tanh
from tests.layers.plain_loops import as_hx, groups, inputs_of, recurrent, single, states_of
from tests.selection import exhaustive
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, random

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),  # torch's, of its own trees
    pytest.mark.filterwarnings("ignore:`torch.jit.(script|trace|trace_method|save|load|script_method)` is deprecated"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # checks of sizes are traced as constants
]

cells = pytest.mark.parametrize("name", [*exhaustive("slstm"), "zoneout_lstm"])
"""A case takes seconds: the short run has the cell with inputs of its steps and two states."""
STACK: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
SIZES = [(7, 2), (1, 3), (4, 6)]


class Model(nn.Module):
    """A module between others, whose arguments are all positional."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.before = nn.Linear(3, INPUT, dtype=torch.float64)
        self.rnn = recurrent(name, **{**STACK, **options})
        self.after = nn.Linear(HIDDEN * (2 if self.rnn.bidirectional else 1), 2, dtype=torch.float64)

    def forward(self, x: Tensor, hx: Any, lengths: Tensor, resets: Tensor, inputs: dict[str, Tensor]) -> Any:
        y, state = self.rnn(torch.tanh(self.before(x)), hx, lengths=lengths, resets=resets, **inputs)
        return self.after(y), state


def arguments(model: Model, steps: int, batch: int) -> tuple[Any, ...]:
    """All that a model takes, with inputs of the steps in two forms."""
    hx = as_hx(states_of(model.rnn, groups(model.rnn), batch, HIDDEN))
    inputs = inputs_of(model.rnn, steps, batch, HIDDEN)
    lengths, resets = torch.randint(0, steps + 1, (batch,)), torch.rand(steps, batch) < 0.3
    return random(steps, batch, 3, grad=True), hx, lengths, resets, inputs


def results(run: Callable[..., Any], parameters: Any, given: tuple[Any, ...]) -> list[Tensor]:
    """What it gives, and the gradients of the sum of its squares."""
    outputs = tree_leaves(run(*given))
    wanted = [t for t in tree_leaves(given) if isinstance(t, Tensor) and t.requires_grad]
    loss = sum(y.square().sum() for y in outputs)
    return [*outputs, *torch.autograd.grad(loss, [*wanted, *parameters], allow_unused=True, materialize_grads=True)]


@pytest.fixture
def _counted(fresh_compiler: None) -> None:
    torch._dynamo.utils.counters.clear()


@cells
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)])
def test_one_graph_for_every_length_and_batch(name: str, backend: str, _counted: None) -> None:  # noqa: PT019
    model = Model(name, num_layers=1)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for steps, batch in ((5, 8), (7, 2), (4, 6)):
        given = arguments(model, steps, batch)
        assert_close(results(compiled, model.parameters(), given), results(model, model.parameters(), given))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_compiled_forward_alone(_counted: None) -> None:  # noqa: PT019
    model = Model("slstm", num_layers=1, bidirectional=False)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for steps, batch in ((5, 8), (7, 2)):
            given = arguments(model, steps, batch)
            assert_close(tree_leaves(compiled(*given)), tree_leaves(model(*given)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@cells
def test_single_steps_in_a_compiled_loop(name: str, fresh_compiler: None) -> None:
    cell = single(name)

    def loop(x: Tensor, hx: Any, inputs: dict[str, Tensor]) -> Any:
        for row in x:
            hx = cell(row, hx, **inputs)
        return hx

    compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")
    given = random(3, BATCH, INPUT, grad=True), as_hx(states_of(cell, BATCH, HIDDEN)), inputs_of(cell, BATCH, HIDDEN)
    assert_close(results(compiled, cell.parameters(), given), results(loop, cell.parameters(), given))


def test_a_compiled_vmap(fresh_compiler: None) -> None:
    """Over the input and the steps' inputs, and over one of these alone."""
    module = recurrent("zoneout_lstm", bidirectional=True, backend="auto")
    x, inputs = random(3, TIME, BATCH, INPUT).detach(), inputs_of(module, 3, 2, TIME, BATCH, HIDDEN)
    keep = inputs["keep_h"].detach()
    for dims in ((0, 0), (None, 0)):
        function = torch.func.vmap(lambda x, keep: module(x, keep_h=keep, keep_c=keep)[0], dims)
        given = x if dims[0] == 0 else x[0], keep
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        with mock.patch.object(ops, "operator_backend", return_value="reference"):
            assert_close(compiled(*given), function(*given))


def test_what_is_wrong_is_found_in_compiled_code(fresh_compiler: None) -> None:
    module = recurrent("zoneout_lstm")
    compiled = torch.compile(module, backend="eager")
    with pytest.raises(TypeError, match=r"Recurrent.forward\(\) needs keep_h, keep_c"):
        compiled(random(TIME, BATCH, INPUT))
    with pytest.raises(ValueError, match="recurrent: keep_c must be broadcastable to"):
        compiled(random(TIME, BATCH, INPUT), keep_h=random(), keep_c=random(9))


def export(model: Model) -> ExportedProgram:
    T, B = Dim("T"), Dim("B")
    given = arguments(model, 5, 3)
    states = model.rnn.cell.states
    hx = ({1: B},) * len(states) if len(states) > 1 else {1: B}
    shapes = ({0: T, 1: B}, hx, {0: B}, {0: T, 1: B}, {name: {0: T, 1: B} for name in given[-1]})
    return torch.export.export(model, given, dynamic_shapes=shapes)


def targets(program: ExportedProgram) -> list[str]:
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"]


@cells
def test_one_program_for_every_length_and_batch(name: str) -> None:
    model = Model(name)
    program = export(model)
    assert targets(program).count("fastrnn.cell_forward.default") == 2
    for steps, batch in SIZES:
        given = arguments(model, steps, batch)
        module = program.module()
        assert_close(results(module, module.parameters(), given), results(model, model.parameters(), given))


@cells
def test_as_torchs_own_operators(name: str) -> None:
    model = Model(name).eval()
    with torch.no_grad():
        program = export(model)
    table = torch.export.default_decompositions()
    table.update(fastrnn.export.decompositions())
    program = program.run_decompositions(table)
    assert not any("fastrnn" in target for target in targets(program))
    assert targets(program).count("scan") == 4
    with torch.no_grad():
        for steps, batch in SIZES:
            given = arguments(model, steps, batch)
            assert_close(tree_leaves(program.module()(*given)), tree_leaves(model(*given)))


def test_unrolled_and_of_one_step() -> None:
    model, cell = Model("zoneout_lstm", num_layers=1).eval(), single("zoneout_lstm").eval()
    table = torch.export.default_decompositions()
    table.update(fastrnn.export.decompositions(unroll=True))
    given = arguments(model, 2, 3)
    one = random(BATCH, INPUT), states_of(cell, BATCH, HIDDEN)
    with torch.no_grad():
        program = torch.export.export(model, given).run_decompositions(table)
        step = torch.export.export(cell, one, inputs_of(cell, BATCH, HIDDEN)).run_decompositions(table)
        assert_close(tree_leaves(program.module()(*given)), tree_leaves(model(*given)))
        inputs = inputs_of(cell, BATCH, HIDDEN)
        assert_close(tree_leaves(step.module()(*one, **inputs)), tree_leaves(cell(*one, **inputs)))
    assert not any("fastrnn" in target or "scan" in target for target in targets(program) + targets(step))


SCRIPT = """
import sys, torch, fastrnn
from fastrnn.cells import tanh

program, given, expected = sys.argv[1], *torch.load(sys.argv[2])
got = torch.export.load(program).module()(*given)
torch.testing.assert_close(got, expected)

@fastrnn.cell
def of_a_script(x, u, h, *, p):
    return tanh(x.a + p * u.a)

model, x = fastrnn.Recurrent(of_a_script, 3, 4, backend="reference"), torch.randn(5, 2, 3)
torch.save((model, x, model(x)[0].detach()), sys.argv[3])
"""


def test_another_process_needs_fastrnn_alone(tmp_path: Path) -> None:
    """It runs a saved program, of a cell of which it knows nothing else; a cell of its own script is saved whole."""

    @fastrnn.cell
    def nowhere_else(x: Any, u: Any, h: Any, *, p: Any) -> Any:
        return tanh(x.a + p * u.a)

    model, x = (
        fastrnn.Recurrent(nowhere_else, INPUT, HIDDEN, bidirectional=True, backend="reference"),
        torch.randn(TIME, BATCH, INPUT),
    )
    names = [str(tmp_path / name) for name in ("program.pt2", "expected.pt", "model.pt")]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with torch.no_grad():
        torch.export.save(torch.export.export(model, (x,)), names[0])
        torch.save(((x,), model(x)), names[1])
    environment = {**os.environ, "PYTHONPATH": str(Path(fastrnn.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script, *names], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded, x, expected = torch.load(names[2], weights_only=False)
    assert torch.equal(loaded(x)[0], expected)


@pytest.mark.exhaustive
def test_a_package_of_aotinductor(tmp_path: Path) -> None:
    model = Model("zoneout_lstm").eval()
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(export(model), package_path=str(tmp_path / "package.pt2"))
        package = torch._inductor.aoti_load_package(path)
        for steps, batch in SIZES:
            given = arguments(model, steps, batch)
            assert_close(tree_leaves(package(*given)), tree_leaves(model(*given)))


@cells
def test_traces_serve_other_sizes_and_weights(name: str) -> None:
    module = recurrent(name, **STACK)

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = module

        def forward(self, x: Tensor, *inputs: Tensor) -> Any:
            return self.rnn(x, **dict(zip(module.cell.inputs, inputs, strict=True)))

    model = Positional()
    traced = torch.jit.trace(model, (random(TIME, BATCH, INPUT), *inputs_of(module).values()))
    assert "fastrnn::cell_forward" in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    for one in (traced, torch.jit.load(file)):
        for steps, batch in ((9, 2), (1, 1)):
            given = random(steps, batch, INPUT, grad=True), *inputs_of(module, 4, steps, batch, HIDDEN).values()
            assert_close(results(one, one.parameters(), given), results(model, model.parameters(), given))
