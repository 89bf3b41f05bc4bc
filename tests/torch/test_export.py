"""torch.export and AOTInductor: programs for every T and B, here and in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch._inductor
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

import fastrnn
from tests.torch_parity import assert_close, lstm_first

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),  # torch's, of its own trees
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # what inductor imports is scripted
]

STACK = {"num_layers": 2, "bidirectional": True, "dropout": 0.4}
SIZES = [(7, 2), (1, 1), (0, 3), (3, 0), (40, 20)]


class Arguments(NamedTuple):
    """Of `Model`, in its order."""

    x: Tensor
    hx: Any
    lengths: Tensor
    resets: Tensor


class Model(nn.Module):
    """A module whose arguments are all positional, as exported programs like them."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(fastrnn, name)(4, 5, dtype=torch.float64, **options)

    def forward(self, x: Tensor, hx: Any, lengths: Tensor, resets: Tensor) -> Any:
        return self.rnn(x, hx, lengths=lengths, resets=resets)


class Three(nn.Module):
    """Each class once, one of them without biases, so that a single package shows them all."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.RNN(4, 5, bidirectional=True, batch_first=True)
        self.gru = fastrnn.GRU(10, 6, num_layers=2, bias=False, batch_first=True)
        self.lstm = fastrnn.LSTM(6, 5, proj_size=3, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor, resets: Tensor) -> list[Tensor]:
        y, h_rnn = self.rnn(x, lengths=lengths)
        y, h_gru = self.gru(torch.tanh(y), resets=resets)
        y, (h, c) = self.lstm(y, lengths=lengths, resets=resets)
        return [2 * y, h_rnn, h_gru, h, c]


def random_arguments(name: str, steps: int, batch: int, layers: int) -> Arguments:
    x, h = torch.randn(steps, batch, 4).double(), torch.randn(2 * layers, batch, 5).double()
    lengths, resets = torch.randint(0, steps + 1, (batch,)), torch.rand(steps, batch) < 0.3
    return Arguments(x, (h, torch.randn_like(h)) if name == "LSTM" else h, lengths, resets)


def export(model: Model, name: str, strict: bool = False) -> ExportedProgram:
    T, B = Dim("T"), Dim("B")
    hx = ({1: B}, {1: B}) if name == "LSTM" else {1: B}
    given = random_arguments(name, 5, 3, model.rnn.num_layers)
    return torch.export.export(
        model, tuple(given), dynamic_shapes=({0: T, 1: B}, hx, {0: B}, {0: T, 1: B}), strict=strict
    )


def operators(program: ExportedProgram) -> list[str]:
    """The names of fastrnn's operators that a program calls."""
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return [name.removeprefix("fastrnn.") for name in names if name.startswith("fastrnn.")]


def results(module: Any, given: Sequence[Any]) -> list[Tensor]:
    """What a module returns, and its parameters' gradients of the sum of squares."""
    torch.manual_seed(1)  # of dropout
    outputs = tree_leaves(module(*given))
    return [*outputs, *torch.autograd.grad(sum(y.square().sum() for y in outputs), list(module.parameters()))]


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@lstm_first
def test_one_program_for_every_length_and_batch(name: str, strict: bool) -> None:
    model = Model(name, **STACK).eval()
    program = export(model, name, strict)
    cell = "rnn_tanh" if name == "RNN" else name.lower()
    assert operators(program) == [f"{cell}_forward.default"] * 2
    for decomposed in (program, program.run_decompositions()):
        assert operators(decomposed) == operators(program)
        module = decomposed.module()
        for steps, batch in SIZES:
            given = random_arguments(name, steps, batch, 2)
            assert_close(tree_leaves(module(*given)), tree_leaves(model(*given)))
    with pytest.raises(ValueError, match=r"lengths must lie within \[0, T=7\], got 8 at index 1"):
        program.module()(*random_arguments(name, 7, 3, 2)._replace(lengths=torch.tensor([7, 8, 0])))


@lstm_first
def test_an_exported_model_is_trained(name: str) -> None:
    """With the dropout of the model in training, from its parameters, until they are given back."""
    model = Model(name, **STACK)
    module = export(model, name).module()
    for steps, batch in ((7, 2), (4, 6)):
        given = random_arguments(name, steps, batch, 2)
        before = results(module, given)
        assert_close(before, results(model, given))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(*given)[0].square().sum().backward()
        optimizer.step()
        assert not torch.equal(before[0], results(module, given)[0])
        model.load_state_dict(module.state_dict())


@pytest.mark.parametrize("backend", ["numba", "reference"])
@lstm_first
def test_a_program_that_kept_nothing_for_backward_has_gradients_all_the_same(name: str, backend: str) -> None:
    """As one has that was exported without gradients: what it did not keep is computed again."""
    model = Model(name, bidirectional=True, backend=backend)
    with torch.no_grad():
        module = export(model, name).module()
    given = random_arguments(name, 7, 2, 1)
    assert_close(results(module, given), results(model, given))


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@lstm_first
def test_a_program_of_torchs_kernels(name: str, strict: bool) -> None:
    """As torch.nn's: for one T, and to be trained, too."""
    model = getattr(fastrnn, name)(4, 5, num_layers=2, backend="aten").eval()
    program = torch.export.export(model, (torch.randn(5, 3, 4),), strict=strict)
    assert operators(program) == []
    x = torch.randn(5, 3, 4)
    assert_close(results(program.module(), (x,)), results(model, (x,)), tolerance=1e-6)


@lstm_first
def test_a_program_is_compiled(name: str, fresh_compiler: None) -> None:
    model = Model(name, **STACK)
    module = export(model, name).module()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps, batch in ((7, 2), (4, 6)):
        given = random_arguments(name, steps, batch, 2)
        torch.manual_seed(1)
        outputs = tree_leaves(compiled(*given))
        grads = torch.autograd.grad(sum(y.square().sum() for y in outputs), list(module.parameters()))
        assert_close([*outputs, *grads], results(model, given))


@pytest.fixture(scope="module")
def three() -> Three:
    torch.manual_seed(0)
    return Three().eval()


def random_batch(steps: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments of `Three`."""
    lengths, resets = torch.randint(0, steps + 1, (batch,)), torch.rand(batch, steps) < 0.3
    return torch.randn(batch, steps, 4), lengths, resets


@pytest.fixture(scope="module")
def files(three: Three, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `Three` as a program and as a package of AOTInductor, arguments for it, and what it gives."""
    folder = tmp_path_factory.mktemp("exported")
    T, B = Dim("T"), Dim("B")
    with torch.no_grad():
        shapes = ({0: B, 1: T}, {0: B}, {0: B, 1: T})
        program = torch.export.export(three, random_batch(5, 3), dynamic_shapes=shapes)
        torch.export.save(program, folder / "program.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "package.pt2"))
        batches = [random_batch(*sizes) for sizes in SIZES]
        torch.save([(batch, three(*batch)) for batch in batches], folder / "expected.pt")
    return folder


LOAD = {"program.pt2": "torch.export.load({!r}).module()", "package.pt2": "torch._inductor.aoti_load_package({!r})"}
"""How each file becomes a function."""
USE = """
model = load()
for given, expected in torch.load("expected.pt"):
    for got, wanted in zip(model(*given), expected, strict=True):
        torch.testing.assert_close(got, wanted)
print("as expected")
"""
REPORT = """
try:
    load()
except RuntimeError as error:
    print(error)
"""


def in_another_process(folder: Path, imports: str, act: str) -> subprocess.CompletedProcess[str]:
    """Acts with each file's `load()`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(fastrnn.__file__).parents[1])}
    source = [imports, *(f"load = lambda: {how.format(name)}\n{act}" for name, how in LOAD.items())]
    command = [sys.executable, "-c", "\n".join(source)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.exhaustive
def test_loaded_by_another_process(files: Path) -> None:
    done = in_another_process(files, "import torch._inductor, fastrnn", USE)
    assert done.stdout == "as expected\nas expected\n", done.stderr


@pytest.mark.exhaustive
def test_without_fastrnn_loading_fails_and_names_the_operator(files: Path) -> None:
    done = in_another_process(files, "import torch._inductor", REPORT)
    # torch.export's own message comes as a warning, before an error that points to it.
    assert "failed to resolve torch.ops.fastrnn.rnn_tanh_forward.default to an operator" in done.stderr
    assert "Please import the custom op to register it" in done.stderr
    assert done.stdout.endswith("Could not find schema for fastrnn::rnn_tanh_forward.\n"), done.stdout


TELLS_WHY = torch.__version__ >= (2, 13)
"""Before torch 2.13 an error within a package names its own call, and the reason goes to standard error."""
OUT_OF_RANGE = r"lengths must lie within \[0, T=5\], got 6 at index 0" if TELLS_WHY else "run_func_"


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_a_package_serves_every_mode_and_sees_lengths_out_of_range(mode: Any, three: Three, files: Path) -> None:
    package = torch._inductor.aoti_load_package(str(files / "package.pt2"))
    with mode():
        for sizes in SIZES:
            batch = random_batch(*sizes)
            assert_close(package(*batch), [y.detach() for y in three(*batch)], 2e-6)
        with pytest.raises(RuntimeError, match=OUT_OF_RANGE):
            package(torch.randn(1, 5, 4), torch.tensor([6]), torch.zeros(1, 5, dtype=torch.bool))
