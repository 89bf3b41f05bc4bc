"""Models exported to ONNX: ONNX Runtime computes what the modules do, for sizes other than those of the export."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fastrnn
import fastrnn.onnx
from fastrnn import onnx_graph, ops
from fastrnn.backends.layer import Layer
from fastrnn.cells.library import mgu
from tests.selection import exhaustive

TIME, BATCH, INPUT, HIDDEN = 5, 3, 4, 6
RECURRENT = ("LSTM", "GRU", "RNN")
LARGE = 50
"""So many units that optimizers, left alone, neither compute recurrent weights beforehand nor find them equal."""
TOLERANCE = 1e-5
ANY = torch.export.Dim.DYNAMIC


class Whole(nn.Module):
    """Every argument of a module, given."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, hx: Any, lengths: Tensor) -> Any:
        return self.rnn(x, hx, lengths=lengths)


def test_a_state_is_left_out_where_it_is_known_to_be_zero() -> None:
    ir = pytest.importorskip("onnx_ir")

    def node(kind: str, *inputs: Any) -> Any:
        return ir.Node("", kind, inputs=inputs).outputs[0]

    x, shape = ir.Value(name="x"), ir.Value(name="shape")
    zeros = node("ConstantOfShape", shape)
    assert onnx_graph._is_zero(node("Expand", zeros, shape))
    assert not onnx_graph._is_zero(node("Sub", zeros, x))
    assert not onnx_graph._is_zero(node("Expand", x, shape))


def export(model: Any, *args: Any, **options: Any) -> Any:
    pytest.importorskip("onnxscript")
    return fastrnn.onnx.export(model, args, verbose=False, **options)


def session(program: Any) -> Any:
    """ONNX Runtime with the program, which the checker has passed."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    onnx.checker.check_model(program.model_proto, full_check=True)
    return runtime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])


def assert_agrees(model: nn.Module, running: Any, *cases: Any, tolerance: float = TOLERANCE) -> None:
    """ONNX Runtime gives what the model does in evaluation mode, for each tuple of arguments."""
    names = [one.name for one in running.get_inputs()]
    for case in cases:
        got = running.run(None, dict(zip(names, (tensor.numpy() for tensor in tree_leaves(case)), strict=True)))
        with torch.no_grad():
            expected = tree_leaves(model.eval()(*case))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, atol=tolerance, rtol=0)


def operators(program: Any) -> list[str]:
    return [node.op_type for node in program.model.graph if node.op_type in RECURRENT]


def whole_case(name: str, steps: int, batch: int, rows: int) -> tuple[Any, ...]:
    h, c = (torch.randn(rows, batch, HIDDEN) for _ in range(2))
    lengths = torch.randint(0, steps + 1, (batch,))
    lengths[-1], lengths[0] = 0, steps
    return torch.randn(steps, batch, INPUT), (h, c) if name == "LSTM" else h, lengths


@pytest.mark.parametrize("name", [*exhaustive("RNN", "GRU"), "LSTM"])
def test_stacks_in_both_directions_with_states_and_lengths(name: str) -> None:
    model = Whole(getattr(fastrnn, name)(INPUT, HIDDEN, num_layers=2, bidirectional=True))
    state = {1: ANY} if name != "LSTM" else ({1: ANY}, {1: ANY})
    shapes = ({0: "time", 1: "batch"}, state, {0: ANY})
    program = export(model, *whole_case(name, TIME, BATCH, 4), dynamic_shapes=shapes)
    assert operators(program) == [name, name]
    assert str(program.model.graph.inputs[0].shape) == f"[time,batch,{INPUT}]"
    others = [whole_case(name, *sizes, rows=4) for sizes in ((TIME, BATCH), (1, 1), (9, 2), (2, 8))]
    assert_agrees(model, session(program), *others)


def test_the_file_holds_operators_and_each_weight_once(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = fastrnn.LSTM(INPUT, LARGE, num_layers=2, batch_first=True, dropout=0.5, backend="aten")
            self.linear = nn.Linear(LARGE, 7)
            self.gru = fastrnn.GRU(7, HIDDEN)
            self.linear.eval()

        def forward(self, x: Tensor) -> Any:
            y = self.linear(self.lstm(x)[0])
            return fastrnn.functional.gru(y, None, self.gru.all_weights, batch_first=True, return_states=True)

    model = Model()
    path = tmp_path / "model.onnx"
    with fastrnn.use_backend("aten"):
        program = export(
            model,
            torch.randn(1, TIME, INPUT),
            path=path,
            dynamic_shapes=({0: "batch", 1: "time"},),
            external_data=False,
        )
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert (model.lstm.backend, model.gru.backend) == ("aten", None)
    assert operators(program) == ["LSTM", "LSTM", "GRU"]
    for node in program.model.graph:
        if node.op_type in RECURRENT:
            given = [value is not None for value in node.inputs]
            assert given[:4] == [True] * 4  # X, W, R and B
            assert not any(given[4:])
            assert all(value.is_initializer() for value in node.inputs[1:4])
    sizes = Counter({name: value.const_value.size for name, value in program.model.graph.initializers.items()})
    assert {"lstm.weight_ih_l0.onnx", "lstm.weight_hh_l1.onnx", "gru.bias_ih_l0.onnx"} <= set(sizes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters <= sum(sizes.values()) <= parameters + 20
    assert 4 * parameters < path.stat().st_size < 4 * parameters + 30_000
    runtime = pytest.importorskip("onnxruntime")
    running = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert_agrees(model, running, (torch.randn(1, TIME, INPUT),), (torch.randn(4, 2, INPUT),))


def test_cells_in_a_loop_share_their_weights() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru = fastrnn.LSTMCell(INPUT, LARGE), fastrnn.GRUCell(LARGE, HIDDEN, bias=False)
            self.rnn = fastrnn.RNNCell(HIDDEN, HIDDEN, nonlinearity="relu")

        def forward(self, x: Tensor, h: Tensor) -> Any:
            state, outputs = None, []
            for t in range(2):
                state = self.lstm(x[t], state)
                h = self.gru(state[0], h)
                outputs.append(self.rnn(h))
            weights = self.rnn.weight_ih, self.rnn.weight_hh, self.rnn.bias_ih, self.rnn.bias_hh
            both = fastrnn.functional.rnn(h[None], None, [weights] * 2, nonlinearity="relu", bidirectional=True)
            return torch.stack(outputs), state, both

    model = Loop()
    cases = [(torch.randn(2, batch, INPUT), torch.randn(batch, HIDDEN)) for batch in (BATCH, 1, 5)]
    program = export(model, *cases[0], dynamic_shapes=({1: "batch"}, {0: ANY}))
    assert Counter(operators(program)) == {"LSTM": 2, "GRU": 2, "RNN": 3}
    assert len([name for name in program.model.graph.initializers if ".onnx" in name]) == 3 + 2 + 3 + 3
    assert_agrees(model, session(program), *cases)


def test_unbatched_in_float16_with_a_parametrized_weight() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = fastrnn.LSTM(INPUT, HIDDEN, dtype=torch.float16)
            nn.utils.parametrizations.weight_norm(self.lstm, "weight_hh_l0")

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return self.lstm(x, lengths=lengths)

    model = Model()
    cases = [(torch.randn(steps, INPUT).half(), torch.tensor(steps - 1)) for steps in (TIME, 1, 8)]
    program = export(model, *cases[0], dynamic_shapes=({0: "time"}, None))
    assert not any(node.op_type in ("Div", "ReduceL2", "Pow") for node in program.model.graph)
    assert_agrees(model, session(program), *cases, tolerance=2e-3)


class Reverse(nn.Module):
    """One layer from the end, as no module has it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.RNN(INPUT, HIDDEN, nonlinearity="relu")

    def forward(self, x: Tensor, h: Tensor, resets: Tensor | None = None) -> Any:
        w_ih, w_hh, *biases = self.rnn.all_weights[0]
        layer = Layer("rnn_relu", x, [w_ih], [w_hh[None]], biases, [], [h], None, resets, reverse=True)
        result = ops.forward(layer, history=False, gates=False, backend="auto")
        return result.states[0], result.finals[0]


def test_one_direction_from_the_end_with_weights_as_they_are() -> None:
    model = Reverse()
    cases = [(torch.randn(steps, BATCH, INPUT), torch.randn(1, BATCH, HIDDEN)) for steps in (TIME, 2)]
    program = export(model, *cases[0], dynamic_shapes=({0: "time"}, None), optimize=False)
    assert "rnn.weight_hh_l0" in program.model.graph.initializers
    assert_agrees(model, session(program), *cases)


def test_programs_of_torch_export() -> None:
    gru, x, other = fastrnn.GRU(INPUT, HIDDEN), torch.randn(TIME, BATCH, INPUT), torch.randn(2, 7, INPUT)
    axes = {0: torch.export.Dim("time"), 1: torch.export.Dim("batch")}
    captured = torch.export.export(gru, (x,), dynamic_shapes=(axes,))
    assert_agrees(gru, session(export(captured)), (x,), (other,))
    pytest.importorskip("onnxscript")
    by_table = captured.run_decompositions(fastrnn.onnx.decompositions())
    assert_agrees(gru, session(torch.onnx.export(by_table, verbose=False)), (x,), (other,))


class Streaming(nn.Module):
    """One step after the other, from a state of its own until it is given one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.LSTM(INPUT, HIDDEN)
        self.register_buffer("bias", torch.randn(1, 1, HIDDEN))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        y, (h, c) = self.rnn(x, (h, c))
        return y + self.bias, h, c


def test_inputs_that_are_given_one_tensor_stay_apart() -> None:
    """From each other and from the model's own: torch.export goes by the tensor, not by the argument."""
    model = Streaming()
    program = export(model, torch.randn(TIME, 1, INPUT), model.bias, kwargs={"c": model.bias})
    assert_agrees(model, session(program), (torch.randn(TIME, 1, INPUT), *torch.randn(2, 1, 1, HIDDEN)))


def test_a_program_whose_inputs_were_one_tensor_is_refused() -> None:
    """The module is what tells them apart; the program no longer does."""
    program = torch.export.export(Streaming(), (torch.randn(TIME, 1, INPUT), *[torch.zeros(1, 1, HIDDEN)] * 2))
    with pytest.raises(ValueError, match=r"inputs h, c are one: torch\.export makes .* give each a clone\(\)"):
        export(program)


class Resets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.GRU(INPUT, HIDDEN)

    def forward(self, x: Tensor) -> Any:
        return self.rnn(x, resets=x[..., 0] > 0)


class Packed(Resets):
    def forward(self, x: Tensor) -> Any:
        return self.rnn(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 1])))[1]


class EveryState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.LSTM(INPUT, HIDDEN)

    def forward(self, x: Tensor) -> Any:
        return self.rnn(x, return_states=True)[2]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Resets(), "gru: cannot be exported to ONNX: ONNX's operators have no resets"),
        (Packed(), "rnn: a PackedSequence cannot be exported to ONNX, its size depends on data"),
        (EveryState(), "lstm: cannot be exported to ONNX: its LSTM does not give c of every step (return_states)"),
    ],
    ids=["resets", "packed", "return_states"],
)
def test_what_onnx_has_not_is_refused(model: nn.Module, message: str) -> None:
    before = dict(torch._decomp.decomposition_table)
    with pytest.raises(fastrnn.onnx.CannotExport) as caught:
        export(model, torch.randn(TIME, BATCH, INPUT))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert torch._decomp.decomposition_table == before
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_the_table_refuses_too() -> None:
    program = torch.export.export(fastrnn.LSTM(INPUT, HIDDEN, proj_size=2), (torch.randn(TIME, BATCH, INPUT),))
    with pytest.raises(fastrnn.onnx.CannotExport, match=r"lstm: cannot be exported to ONNX: .* has no projection"):
        program.run_decompositions(fastrnn.onnx.decompositions())


@pytest.mark.parametrize("name", [*exhaustive("RNN", "LSTM"), "GRU"])
def test_heads_become_the_weights_of_one(name: str) -> None:
    model = Whole(getattr(fastrnn, name)(INPUT, HIDDEN, bidirectional=True, num_heads=3, backend="reference"))
    cases = [whole_case(name, steps, batch, 2) for steps, batch in ((TIME, BATCH), (2, 4))]
    state = {1: ANY} if name != "LSTM" else ({1: ANY}, {1: ANY})
    program = export(model, *cases[0], dynamic_shapes=({0: ANY, 1: ANY}, state, {0: ANY}))
    [node] = [node for node in program.model.graph if node.op_type in RECURRENT]
    assert node.inputs[2].is_initializer()
    assert node.inputs[2].name == "rnn.weight_hh_l0.onnx"
    assert_agrees(model, session(program), *cases)


def test_a_scan_of_a_cell_with_heads() -> None:
    model = fastrnn.Recurrent(mgu, INPUT, HIDDEN, num_heads=2, backend="reference")
    cases = [(torch.randn(steps, BATCH, INPUT),) for steps in (TIME, 2)]
    program = export(model, *cases[0], dynamic_shapes=({0: "time"},))
    assert [node.op_type for node in program.model.graph if node.op_type == "Scan"] == ["Scan"]
    assert_agrees(model, session(program), *cases)


def test_bfloat16_asks_for_an_opset_that_has_it() -> None:
    onnx = pytest.importorskip("onnx")
    rnn, x = fastrnn.RNN(INPUT, HIDDEN, dtype=torch.bfloat16), torch.randn(TIME, BATCH, INPUT).bfloat16()
    onnx.checker.check_model(export(rnn, x, opset_version=22).model_proto, full_check=True)
    with pytest.raises(fastrnn.onnx.CannotExport, match="opset_version=22"):
        export(rnn, x, opset_version=21)


@pytest.mark.filterwarnings(
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning",
    "ignore:Exporting a model to ONNX with a batch_size other than 1:UserWarning",
    "ignore::torch.jit.TracerWarning",
)
def test_the_exporter_based_on_torchscript(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, x = nn.Sequential(fastrnn.LSTM(INPUT, HIDDEN)), torch.randn(TIME, BATCH, INPUT)
    with pytest.raises(ValueError, match=r"dynamo must be True.*torch\.onnx\.export\(\.\.\., dynamo=False\)"):
        fastrnn.onnx.export(model, (x,), dynamo=False)
    path = tmp_path / "model.onnx"
    with pytest.raises(TypeError, match="named by path, not by f"):
        fastrnn.onnx.export(model, (x,), f=path)
    assert not path.exists()
    torch.onnx.export(model, (x,), path, dynamo=False)
    assert [node.op_type for node in onnx.load(path).graph.node if node.op_type in RECURRENT] == ["LSTM"]
    model[0].backend = "reference"
    with torch.no_grad(), pytest.raises(torch.onnx.errors.UnsupportedOperatorError, match="fastrnn::lstm_forward"):
        torch.onnx.export(model, (x,), path, dynamo=False)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'needs what pip install "fastrnn\[onnx\]" installs: .*onnxscript'):
        fastrnn.onnx.export(fastrnn.GRU(INPUT, HIDDEN), (torch.randn(TIME, BATCH, INPUT),))
